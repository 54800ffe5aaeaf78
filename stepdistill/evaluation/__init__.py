"""How good is a few-step student? Distances to data, their uncertainty, and a report one can read.

* `moments`: streaming mean and covariance, the Fréchet distance
* `features`: the two spaces in which images are compared
* `domain_cnn`: the small digits classifier behind one of them, with its recipe
* `metrics`: kernel distance, precision and recall, diversity, intervals
* `suite`: contenders × fresh seed blocks → rows
* `figures`, `report`: rows → results.json, report.md, report.html
"""
