"""What people open in a browser: a photo to click on, a run to look through and put right. ``serve`` alone needs it."""
