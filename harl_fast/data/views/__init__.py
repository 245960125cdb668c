"""One sample's views: crop, decode, resize, colour and mask cells."""
