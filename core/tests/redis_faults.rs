//! What can go wrong between a manager and its Redis servers, on real servers.
//!
//! These tests start `redis-server` processes of their own on free loopback ports, pause, kill and misconfigure
//! them, and put a scriptable proxy in front of them that loses, holds and cuts single requests and replies.

mod faults;
