"""CPU attention, dropout and loss that are faster than torch's."""
