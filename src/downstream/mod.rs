//! downstream.
