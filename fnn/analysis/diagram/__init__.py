"""A picture of a network: its flow of data, the layout of that, and the drawing."""
