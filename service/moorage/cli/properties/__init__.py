"""Properties of units, between what people write and read and the JSON that the service takes and returns."""
