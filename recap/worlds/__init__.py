"""Generated worlds whose truth is known exactly: synthetic flags and the shapes world."""
