"""What the data of a training are like, before it trains; and what simple models reach on them."""
