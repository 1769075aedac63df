"""The web page in a real Chromium, against a real stack: journeys as a person takes them."""
