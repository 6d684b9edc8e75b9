"""Reports: self-contained HTML files, for the screen, the phone and the keyboard."""
