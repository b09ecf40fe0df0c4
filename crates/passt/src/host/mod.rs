//! What the machine has: links, addresses, routes and resolvers as plain facts (SPEC §3).
