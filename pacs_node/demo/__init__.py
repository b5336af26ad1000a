"""The whole product at work on one machine, with drawn patients."""
