// Package config is the configuration file: what it may say, what is wrong with it, and what the
// other packages need of it.
//
// Load reads a file (TOML) and reports everything that is wrong at once, each with its line and
// what to do. Default is a file that says nothing. A value can be a reference, env:NAME or
// file:/path, so that a secret need not stand in the file. OutboxConfig, NewWebhook, Managed and
// Keyring make of it what packages outbox, sink and secret take.
package config
