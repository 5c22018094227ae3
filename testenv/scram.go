package testenv

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

// scramSecret returns what PostgreSQL keeps of a password, which it takes in place of the password
// (pg_authid.rolpassword, by RFC 5802 and 7677). The password is hashed once and not 4,096 times,
// since a client has to hash as often at each connection: that takes it 1 ms, and 10 ms under the
// race detector. The passwords of tests are random, so once is as safe.
func scramSecret(password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	const iterations = 1
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	stored := sha256.Sum256(mac(salted, []byte("Client Key")))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, encode(salt), encode(stored[:]), encode(mac(salted, []byte("Server Key")))), nil
}
