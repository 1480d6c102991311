package event

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/hashing"
)

func TestParseTimestamp(t *testing.T) {
	for text, want := range map[string]string{
		"2026-11-15T10:30:00Z":                "2026-11-15T10:30:00Z",
		"2026-11-15t10:30:00z":                "2026-11-15T10:30:00Z",
		"2026-11-15T10:30:00":                 "2026-11-15T10:30:00Z",
		"2026-11-15T10:30:00.5":               "2026-11-15T10:30:00.5Z",
		"2026-11-15T10:30:00.123456789Z":      "2026-11-15T10:30:00.123456Z",
		"2026-11-15T10:30:00.999999999+00:00": "2026-11-15T10:30:00.999999Z",
		"2026-11-15T10:30:00.000000999Z":      "2026-11-15T10:30:00Z",
		"2026-11-15T10:30:00+05:45":           "2026-11-15T04:45:00Z",
		"2026-11-15T10:30:00-00:00":           "2026-11-15T10:30:00Z",
		"2026-11-15T10:30:00+23:59":           "2026-11-14T10:31:00Z",
		"2026-11-15T10:30:00-23:59":           "2026-11-16T10:29:00Z",
		"2026-12-31T23:59:59.999999-01:00":    "2027-01-01T00:59:59.999999Z",
		"1969-12-31T23:59:59.9999999Z":        "1969-12-31T23:59:59.999999Z",
		"2024-02-29T00:00:00Z":                "2024-02-29T00:00:00Z",
		"2000-02-29T00:00:00Z":                "2000-02-29T00:00:00Z",
		"0000-02-29T00:00:00Z":                "0000-02-29T00:00:00Z",
		"0001-01-01T00:00:00Z":                "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59Z":                "9999-12-31T23:59:59Z",
	} {
		micro, ok := parseTimestamp([]byte(text))
		require.True(t, ok, text)
		require.Equal(t, want, time.UnixMicro(micro).UTC().Format(time.RFC3339Nano), text)
	}
	for _, text := range strings.Split(`
2026-11-15
2026-11-15T10:30Z
2026-11-15T10:30
2026-11-15T10:30:60Z
2026-06-30T23:59:60Z
2026-11-15T24:00:00Z
2026-11-15T10:60:00Z
2026-11-15T10:30:00,123Z
2026-11-15T10:30:00.Z
2026-11-15T10:30:00.
2026-11-15T10:30:00.1234567890Z
2026-11-15T10:30:00.0000000000
2026-11-15T10:30:00.1.2Z
2026-11-15T10:30:00.-1Z
2026-11-15 10:30:00Z
2026-11-15_10:30:00Z
2026-11-15T1:30:00Z
2026-11-15T10:3:00Z
2026-11-15T10:30:0Z
2026-1-15T10:30:00Z
2026-11-1T10:30:00Z
2026-11-15T10:30:00ZZ
2026-11-15T10:30:00Z 
 2026-11-15T10:30:00Z
2026-11-15T10:30:00 Z
2026-11-15T10:30:00X
2026-11-15T10:30:00+
2026-11-15T10:30:00+02
2026-11-15T10:30:00+0200
2026-11-15T10:30:00+2:00
2026-11-15T10:30:00+02:0
2026-11-15T10:30:00+02:000
2026-11-15T10:30:00+24:00
2026-11-15T10:30:00-23:60
2026-11-15T10:30:00~02:00
2026-11-15T10:30:00+02-00
2026-11-15T10:30:00+a2:00
2026-11-15T10:30:00+02:0b
2026-11-15T10:30:00−02:00
2026-11-15T10:30:00Z+02:00
2026-00-15T10:30:00Z
2026-13-15T10:30:00Z
2026-11-00T10:30:00Z
2026-11-31T10:30:00Z
2026-01-32T10:30:00Z
2026-04-31T10:30:00Z
2026-06-31T10:30:00Z
2026-09-31T10:30:00Z
2026-02-29T10:30:00Z
2024-02-30T10:30:00Z
1900-02-29T10:30:00Z
2100-02-29T10:30:00Z
+2026-11-15T10:30:00Z
-2026-11-15T10:30:00Z
+002026-11-15T10:30:00Z
12026-11-15T10:30:00Z
026-11-15T10:30:00Z
2O26-11-15T10:30:00Z
202x-11-15T10:30:00Z
2026/11/15T10:30:00Z
2026-11/15T10:30:00Z
2026-11-15T10.30.00Z
2026-11-15T10:30.00Z
2026-1a-15T10:30:00Z
2026-11-a5T10:30:00Z
2026-11-15Ta0:30:00Z
2026-11-15T10:a0:00Z
2026-11-15T10:30:a0Z
20261115T103000Z
2026-W47-1T10:30:00Z
2026-319T10:30:00Z
yesterday
1763202600
2026-11-15T10:30:00Z[UTC]
２026-11-15T10:30:00Z`, "\n") {
		_, ok := parseTimestamp([]byte(text))
		require.False(t, ok, "%q", text)
		for _, member := range []string{`{"timestamp":%q,"action":"a","status":"success"}`, with(`"archivedAt":%q`)} {
			refused(t, InvalidTimestamp, fmt.Sprintf(member, text))
		}
	}
}

// TestEveryDay goes over the days of 800 years, and the day after each month's last.
func TestEveryDay(t *testing.T) {
	at := time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)
	for at.Year() < 2400 {
		for _, day := range []int{at.Day(), at.Day() + 1} {
			text := fmt.Sprintf("%04d-%02d-%02dT00:00:00Z", at.Year(), at.Month(), day)
			want, err := time.Parse(time.RFC3339, text)
			micro, ok := parseTimestamp([]byte(text))
			if ok != (err == nil) || ok && micro != want.UnixMicro() {
				t.Fatalf("%s: %d, %t, %v", text, micro, ok, err)
			}
		}
		at = at.AddDate(0, 0, 1)
	}
}

func TestTimestampText(t *testing.T) {
	for text, kept := range map[string]bool{
		"2026-11-15T10:30:00.000Z":       false,
		"2026-11-15T10:30:00.123Z":       false,
		`2026-11-15T10:30:00\u002e123Z`:  false,
		"2026-11-15T10:30:00Z":           true,
		"2026-11-15T10:30:00.1Z":         true,
		"2026-11-15T10:30:00.000000Z":    true,
		"2026-11-15T10:30:00.123000Z":    true,
		"2026-11-15T10:30:00.123456Z":    true,
		"2026-11-15T10:30:00.123z":       true,
		"2026-11-15t10:30:00.123Z":       true,
		"2026-11-15T10:30:00.123":        true,
		"2026-11-15T10:30:00.123+00:00":  true,
		"2026-11-15T12:30:00.123+02:00":  true,
		"2026-11-15T10:30:00.123456789Z": true,
	} {
		row := taken(t, `{"timestamp":"`+text+`","action":"a","status":"success"}`)
		require.Equal(t, string(row.Hash[:]), storedHash(row), "%s: the hash can be proven from the row", text)
		if kept {
			require.Equal(t, text, string(row.TimestampText))
		} else {
			require.Nil(t, row.TimestampText, text)
		}
	}
}

// FuzzTimestamp holds the parser against time.Parse, which takes all that RFC 3339 does and more.
func FuzzTimestamp(f *testing.F) {
	for _, text := range []string{
		"2026-11-15T10:30:00Z", "2026-11-15t10:30:00.123456789+05:45", "2026-02-29T00:00:00", "0000-01-01T00:00:00.1-23:59",
		"2026-11-15T24:00:00Z", "2026-11-15T10:30:60Z", "2026-11-15T1:30:00,5Z",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		micro, ok := parseTimestamp([]byte(text))
		want, err := slowTimestamp(text)
		if ok != (err == nil) {
			t.Fatalf("%q: %t, %v", text, ok, err)
		}
		if !ok {
			return
		}
		if micro != want.UnixMicro() {
			t.Fatalf("%q: %d, want %s", text, micro, want)
		}
		if year := time.UnixMicro(micro).UTC().Year(); year < 0 || year > 9999 {
			return
		}
		canonical := hashing.AppendTimestamp(nil, micro)
		again, ok := parseTimestamp(canonical)
		if !ok || again > micro || micro-again > 999 {
			t.Fatalf("%q: %s is %d", text, canonical, again)
		}
	})
}

// slowTimestamp is time.Parse, made as strict as the rule.
func slowTimestamp(text string) (time.Time, error) {
	upper := strings.ToUpper(text)
	if upper != strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || strings.ContainsRune("-:.+TZ", r) {
			return r
		}
		return -1
	}, upper) {
		return time.Time{}, fmt.Errorf("foreign characters")
	}
	if len(upper) < 19 || upper[10] != 'T' || upper[13] != ':' { // it takes one-digit hours
		return time.Time{}, fmt.Errorf("shape")
	}
	layout := "2006-01-02T15:04:05"
	if rest, found := strings.CutPrefix(upper[19:], "."); found {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits < 1 || digits > 9 {
			return time.Time{}, fmt.Errorf("fraction of %d digits", digits)
		}
	}
	if zone := strings.LastIndexAny(upper, "+-Z"); zone > 10 {
		layout += "Z07:00"
		if upper[zone] != 'Z' && len(upper)-zone == 6 && upper[zone+1:zone+3] > "23" { // it takes +24:00
			return time.Time{}, fmt.Errorf("zone")
		}
	}
	return time.Parse(layout, upper)
}
