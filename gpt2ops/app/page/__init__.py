"""What the page shows, and what happens when something on it is pressed."""
