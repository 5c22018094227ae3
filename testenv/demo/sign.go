package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"time"
)

// settingsToken returns a token (RFC 7519) that lets a user of the app see the webhooks of one venue
// for five minutes. The app calls it for a venue that the signed-in user may see, and for no other.
func settingsToken(key []byte, venue, user string, mayChange bool, now time.Time) string {
	scope := "read"
	if mayChange {
		scope = "manage"
	}
	claims, err := json.Marshal(map[string]any{
		"aud":   "webhook-agent",
		"venue": venue,
		"scope": scope,
		"sub":   user,
		"iat":   now.Unix(),
		"exp":   now.Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		panic(err) // texts and numbers alone
	}
	encode := base64.RawURLEncoding.EncodeToString
	unsigned := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(claims)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(unsigned))
	return unsigned + "." + encode(mac.Sum(nil))
}
