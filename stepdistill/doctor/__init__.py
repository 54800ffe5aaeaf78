"""What a pipeline's network is really asked, and whether a few-step student was trained for it."""
