package sink

import (
	"crypto/sha256"
	"hash"
	"sync"
)

// mac computes HMAC-SHA256 (RFC 2104) and is used again for other keys. Without that the two
// signatures of an attempt would need twelve allocations, most of those that an attempt makes.
// FuzzMac compares it with crypto/hmac.
type mac struct {
	hash.Hash // SHA-256 of the inner pad and what was written after it
	pad       [sha256.BlockSize]byte
	sum       [sha256.Size]byte
}

var macs = sync.Pool{New: func() any { return &mac{Hash: sha256.New()} }}

// newMac returns a mac for a key. The caller must call end, which gives the mac back to the pool.
func newMac(key []byte) *mac {
	m := macs.Get().(*mac)
	m.Reset()
	if len(key) > len(m.pad) {
		sum := sha256.Sum256(key)
		key = sum[:]
	}
	clear(m.pad[copy(m.pad[:], key):])
	m.xor(0x36)
	m.Write(m.pad[:])
	return m
}

// end returns the HMAC of what was written, and gives the mac back to the pool.
func (m *mac) end() [sha256.Size]byte {
	defer m.free()
	inner := m.Sum(m.sum[:0])
	m.Reset()
	m.xor(0x36 ^ 0x5c)
	m.Write(m.pad[:])
	m.Write(inner)
	return [sha256.Size]byte(m.Sum(m.sum[:0]))
}

// free clears the key from memory and gives the mac back to the pool.
func (m *mac) free() {
	clear(m.pad[:])
	macs.Put(m)
}

func (m *mac) xor(with byte) {
	for i := range m.pad {
		m.pad[i] ^= with
	}
}
