"""What the command line is made of: launching notebooks, measuring layers, printing them."""
