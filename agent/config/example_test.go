package config

import (
	"os"
	"testing"
)

func TestExample_IsTheExampleOfTheRepository(t *testing.T) {
	text, err := os.ReadFile("../../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	if Example != string(text) {
		t.Error("agent/config/example.toml is not config.example.toml: run go generate ./agent/config")
	}
}
