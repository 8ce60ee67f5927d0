"""What networks answer on evaluation images, and how far two of them differ."""
