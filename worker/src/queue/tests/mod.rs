//! Tests of the queue as a whole, on the test clock and without a network.
