"""A run's tables -> what people train on and look at. Must not know how masks were made: no Ray, no OpenVINO."""
