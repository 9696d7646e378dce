//! Balance, movement, zones and order of the walk.
