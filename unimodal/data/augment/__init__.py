"""Augmentations of pictures, by the papers that use them. Each takes a Pillow picture and a random generator."""
