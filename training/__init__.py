"""How the embedded model was made: scenes, training, measuring. Nothing imports it; see README.md beside this file."""
