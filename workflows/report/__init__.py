"""A run told as one HTML file: what is said of it, its figures, the page. From storage alone."""
