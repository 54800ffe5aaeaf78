"""How good is a few-step student? Scores of images, their uncertainty, and a report one can read.

* `rows`: what a table holds, and results.json
* `moments`, `manifold`, `kept`, `intervals`, `numerals`: what metrics share
* `gallery`: real images that are read when they are looked at
* `features`: the spaces in which images are compared, one a file
* `summary`: what a space says of real images, kept by their content; `published`: what others say
* `reference`: what samplers are asked for, and the real images, if any; `suites`: one task a file
* `metric`: what a metric is; `metrics`: one a file
* `suite`: what a YAML of eval/suites says
* `costs`: what an image costs, measured beside its scores
* `evaluate`: samplers × fresh seed blocks → rows; `scores`: those that are made, on disk
* `report`: rows → results.json, report.md, report.html
"""
