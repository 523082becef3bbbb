"""People judge outputs of models: what is judged, by whom, on a page or in a terminal, and what it comes to."""
