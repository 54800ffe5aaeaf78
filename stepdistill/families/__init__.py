"""What the methods of one family share."""
