// Package config is the configuration: what it may say, what is wrong with it, and what the other
// packages need of it.
//
// Load reads the file (TOML), the environment over it, and the flag --database-url over both. It
// reports everything that is wrong at once, each with its source and what to do. Each key has one
// variable (Variable), so nothing but the fields of Config says which keys there are. Default is a
// configuration that says nothing. A secret can be a reference, env:NAME or file:/path, so that it
// need not stand in the file. Settings says what comes from where. OutboxConfig, NewWebhook, Managed
// and Keyring make of it what packages outbox, sink and secret take.
package config
