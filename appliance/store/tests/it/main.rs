//! The store over a real SQLite file: one binary.

mod rooms;
