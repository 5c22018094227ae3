package config

import _ "embed"

// Example is config.example.toml, which the command init writes. The file stays at the root of the repository, where people
// look for it. go:embed reads only below its own package, and the package at the root is the program, which others cannot
// import. So a copy lies here, and a test holds both equal.
//
//go:generate cp ../../config.example.toml example.toml
//go:embed example.toml
var Example string
