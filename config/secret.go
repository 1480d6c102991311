package config

import (
	"fmt"
	"io"
)

// Secret is a value that printing and encoding don't show: only Reveal does. Package fmt can't ask a Secret in an
// unexported field, so a struct with one is not to be printed.
type Secret string

// Reveal returns the value, to hand it to whom it opens a door.
func (s Secret) Reveal() string { return string(s) }

// String says whether there is a value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(set)"
}

// GoString is what %#v prints.
func (s Secret) GoString() string { return s.String() }

// Format answers the verbs of package fmt, so that none (%x, %d …) reaches the value. It isn't asked for %p and %w, which
// vet forbids for a string.
func (s Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, s.String()) // a fmt.State returns no errors
}

// MarshalText is what JSON and loggers encode.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
