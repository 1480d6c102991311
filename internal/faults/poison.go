package faults

import (
	"bytes"
	"strings"
)

// poison is a way to spoil an event so that it can't be a row. Each result is unlike any other, or has no bytes at all.
type poison struct {
	reason string
	spoil  func(*inventor, *draft) []byte
}

// changed spoils an event by another value of a member; an empty one removes it.
func changed(name, json string) func(*inventor, *draft) []byte {
	return func(_ *inventor, d *draft) []byte {
		d.remove("hash")
		if json == "" {
			d.remove(name)
		} else {
			d.set(name, json)
		}
		return d.bytes()
	}
}

var poisons = []poison{
	{"empty", func(*inventor, *draft) []byte { return nil }},
	{"empty", func(*inventor, *draft) []byte { return []byte{} }},
	{"too_large", func(_ *inventor, d *draft) []byte {
		d.set("filler", quote(strings.Repeat("x", maxEventBytes)))
		return d.bytes()
	}},
	{"invalid_json", func(_ *inventor, d *draft) []byte { b := d.bytes(); return b[:len(b)-1] }},
	{"invalid_json", func(v *inventor, _ *draft) []byte { return []byte("no event: " + v.id()) }},
	{"invalid_unicode", func(_ *inventor, d *draft) []byte {
		d.set("principalId", `"?"`)
		return bytes.Replace(d.bytes(), []byte(`"?"`), []byte("\"\xff\""), 1)
	}},
	{"invalid_unicode", changed("note", `"\ud800"`)},
	{"nul_character", changed("note", `"\u0000"`)},
	{"not_an_object", func(v *inventor, _ *draft) []byte { return []byte("[" + quote(v.id()) + "]") }},
	{"duplicate_key", func(_ *inventor, d *draft) []byte {
		d.members = append(d.members, member{"action", `"again"`})
		return d.bytes()
	}},
	{"too_deep", changed("deep", strings.Repeat("[", 40)+strings.Repeat("]", 40))},
	{"missing_field", changed("action", "")},
	{"missing_field", changed("status", "null")},
	{"invalid_type", changed("principalId", "5")},
	{"invalid_value", changed("status", `"maybe"`)},
	{"invalid_value", changed("retentionPolicy", "0")},
	{"invalid_timestamp", changed("timestamp", `"2026-02-30T00:00:00Z"`)},
	{"timestamp_out_of_range", changed("timestamp", `"1999-12-31T23:59:59.000Z"`)},
	{"timestamp_out_of_range", changed("timestamp", `"2999-12-31T23:59:59.000Z"`)},
	{"too_long", changed("ttl", quote(strings.Repeat("é", 256)))},
	{"number_out_of_range", changed("n", "1e999")},
	{"hash_mismatch", changed("hash", quote(strings.Repeat("0", 64)))},
}
