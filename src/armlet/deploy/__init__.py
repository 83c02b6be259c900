"""What leaves the house: policies as others keep, run and publish them."""
