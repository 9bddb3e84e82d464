"""The small bundle that ships inside the package; MODEL_CARD.md beside this file says what it can and cannot do."""
