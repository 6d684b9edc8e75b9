"""Reports: HTML files that need nothing else, for the screen, the phone and the keyboard."""
