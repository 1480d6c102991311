package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// FuzzTake holds Take against what encoding/json makes of the same text, and a decoder used over and over
// against a fresh one.
func FuzzTake(f *testing.F) {
	for _, c := range readCorpus(f) {
		f.Add(c.Value)
	}
	for _, v := range readVectors(f) {
		f.Add(v.Event)
	}
	for _, broken := range faulty {
		f.Add([]byte(with(broken.members)))
	}
	f.Add([]byte(benchmarkEvent))
	f.Add([]byte(with(`"x":{"a":[{},[],-0.5e-7,"\u00e9\ud83d\ude00\/"],"\u0061":1}`)))
	f.Add([]byte(with(`"retentionPolicy":2.555e3,"processingLatency":-0.0,"archivedAt":"2026-11-15T10:30:00+02:00"`)))
	dirty := NewDecoder(rules)
	f.Fuzz(func(t *testing.T, value []byte) {
		rec := &Record{Timestamp: clock.UnixMilli(), Value: value}
		before := bytes.Clone(value)
		row, q := dirty.Take(rec, clock)
		again, q2 := NewDecoder(rules).Take(rec, clock)
		require.Equal(t, copied(again), copied(row))
		require.Equal(t, q2, q)
		require.NotEqual(t, row == nil, q == nil)
		require.True(t, bytes.Equal(before, value))
		if q != nil {
			require.NotEmpty(t, q.Detail)
			requireReason(t, q.Reason, value)
			return
		}
		requireReason(t, 0, value)
		requireRow(t, row, value)
	})
}

// requireReason checks the reason, 0 for a row, as far as encoding/json knows better.
func requireReason(t *testing.T, reason Reason, value []byte) {
	t.Helper()
	err := json.Unmarshal(value, new(json.RawMessage))
	if err != nil && strings.Contains(err.Error(), "exceeded max depth") {
		return // a limit of its own
	}
	switch {
	case len(value) == 0:
		require.Equal(t, Empty, reason)
	case len(value) > rules.MaxBytes:
		require.Equal(t, TooLarge, reason)
	case reason == InvalidJSON:
		require.Error(t, err)
	case reason == InvalidUnicode:
		lower := bytes.ToLower(value)
		require.True(t, !utf8.Valid(value) || bytes.Contains(lower, []byte(`\ud`)))
	case reason == NULCharacter:
		require.Contains(t, string(value), `\u0000`)
	default:
		require.NoError(t, err, "%s", reason)
		require.True(t, utf8.Valid(value))
		switch whole := slowWhole(t, value); whole {
		case 0:
			requireFieldReason(t, reason, value)
		case NumberOutOfRange: // what is wrong with a field may come first
			require.True(t, MissingField <= reason && reason <= NumberOutOfRange, "%s", reason)
			requireFieldReason(t, reason, value)
		default:
			require.Equal(t, whole.String(), reason.String())
		}
	}
}

// requireFieldReason checks what rests on the presence and the type of the members.
func requireFieldReason(t *testing.T, reason Reason, value []byte) {
	t.Helper()
	var members map[string]any
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&members))
	missing, mistyped := false, false
	for f := timestamp; f < signature; f++ {
		member := members[f.String()]
		_, isString := member.(string)
		_, isNumber := member.(json.Number)
		switch {
		case member == nil:
			missing = missing || f <= status
		case f == processingLatency:
			mistyped = mistyped || !isNumber
		case f == retentionPolicy:
			mistyped = mistyped || !isNumber && !isString
		default:
			mistyped = mistyped || !isString
		}
	}
	switch {
	case missing:
		require.Equal(t, MissingField.String(), reason.String())
	case mistyped:
		require.Equal(t, InvalidType.String(), reason.String())
	default:
		require.True(t, reason == 0 || reason > InvalidType, "%s", reason)
	}
}

// slowWhole returns which rule about the text as a whole it breaks, if it is well-formed, by encoding/json's tokens.
func slowWhole(t *testing.T, value []byte) (reason Reason) {
	t.Helper()
	type level struct {
		keys  map[string]bool // nil in an array
		inKey bool
	}
	var levels []*level
	found := map[Reason]bool{}
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	for first := true; ; first = false {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if first && token != json.Delim('{') {
			return NotAnObject
		}
		var top *level
		if len(levels) > 0 {
			top = levels[len(levels)-1]
		}
		if top != nil && top.keys != nil && token != json.Delim('}') {
			top.inKey = !top.inKey
			if top.inKey {
				key, isString := token.(string)
				require.True(t, isString)
				found[DuplicateKey] = found[DuplicateKey] || top.keys[key]
				top.keys[key] = true
				continue
			}
		}
		switch token := token.(type) {
		case json.Delim:
			switch token {
			case '{':
				levels = append(levels, &level{keys: map[string]bool{}})
			case '[':
				levels = append(levels, &level{})
			default:
				levels = levels[:len(levels)-1]
			}
			found[TooDeep] = found[TooDeep] || len(levels) > 32
		case string:
			require.NotContains(t, token, "\x00")
		case json.Number:
			found[NumberOutOfRange] = found[NumberOutOfRange] || slowOutOfRange(token.String())
		}
	}
	for r := DuplicateKey; r <= NumberOutOfRange; r++ {
		if found[r] {
			return r
		}
	}
	return 0
}

func slowOutOfRange(text string) bool {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(text), "e")
	digits := len(strings.Trim(strings.ReplaceAll(mantissa, ".", ""), "-"))
	if digits > 1000 || exponent == "" {
		return digits > 1000
	}
	e, _ := new(big.Int).SetString(exponent, 10)
	return e.CmpAbs(big.NewInt(308)) > 0
}

// requireRow checks the columns that are plain texts, and the details, against the members.
func requireRow(t *testing.T, row *Row, value []byte) {
	t.Helper()
	var members map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(value, &members))
	for f, got := range map[field][]byte{
		ttl: row.TTL, principalID: row.PrincipalID, organizationID: row.OrganizationID, action: row.Action, targetResourceType: row.TargetResourceType,
		targetResourceID: row.TargetResourceID, status: row.Status, outcomeDescription: row.OutcomeDescription, correlationID: row.CorrelationID,
	} {
		var want *string
		if raw, there := members[f.String()]; there {
			require.NoError(t, json.Unmarshal(raw, &want))
		}
		require.Equal(t, want == nil, got == nil, f)
		if want != nil {
			require.Equal(t, *want, string(got), f)
		}
	}
	for key, raw := range members {
		if f := fieldOf([]byte(key)); string(raw) == "null" || f != unknown && f != signature {
			delete(members, key)
		}
	}
	details := map[string]json.RawMessage{}
	if row.Details != nil {
		require.NoError(t, json.Unmarshal(row.Details, &details))
		require.NotEmpty(t, details)
	}
	require.Equal(t, members, details)
	require.Equal(t, string(row.Hash[:]), storedHash(row))
}
