package event

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func itoa(n int) string { return strconv.Itoa(n) }

// faulty holds a member, or members, for each reason that a well-formed object can have; the required ones are
// left to the caller where they are the fault.
var faulty = []struct {
	reason  Reason
	members string
	instead string // the required member that these stand in for
}{
	{DuplicateKey, `"d":1,"d":1`, ""},
	{TooDeep, `"deep":` + strings.Repeat("[", 32) + strings.Repeat("]", 32), ""},
	{MissingField, `"action":null`, "action"},
	{InvalidType, `"ttl":7`, ""},
	{InvalidValue, `"processingLatency":-1`, ""},
	{InvalidTimestamp, `"archivedAt":"yesterday"`, ""},
	{TimestampOutOfRange, `"timestamp":"2030-01-01T00:00:00Z"`, "timestamp"},
	{TooLong, `"principalId":"` + strings.Repeat("x", 256) + `"`, ""},
	{NumberOutOfRange, `"n":1e309`, ""},
	{HashMismatch, `"hash":"` + strings.Repeat("0", 64) + `"`, ""},
	{SignatureMismatch, `"signature":"x"`, ""},
}

// TestPrecedence combines every two faults, in either order in the text: the reason listed first counts.
func TestPrecedence(t *testing.T) {
	signed := rules
	signed.SignatureKey = []byte("secret")
	for i, a := range faulty {
		for _, b := range faulty[i:] {
			members := []string{`"status":"success"`}
			if a.instead != "timestamp" && b.instead != "timestamp" {
				members = append(members, `"timestamp":"2026-11-15T10:30:00Z"`)
			}
			if a.instead != "action" && b.instead != "action" {
				members = append(members, `"action":"a"`)
			}
			members = append(members, a.members)
			if a.reason != b.reason {
				members = append(members, b.members)
			}
			for range 2 {
				value := "{" + strings.Join(members, ",") + "}"
				row, q := takeBy(t, signed, value)
				require.Nil(t, row, value)
				require.Equal(t, a.reason.String(), q.Reason.String(), "with %s: %s", b.reason, value)
				for l, r := 0, len(members)-1; l < r; l, r = l+1, r-1 {
					members[l], members[r] = members[r], members[l]
				}
			}
		}
	}
}

func TestPrecedenceOfTheWhole(t *testing.T) {
	small := rules
	small.MaxBytes = 20
	_, q := takeBy(t, small, strings.Repeat("[", 21))
	require.Equal(t, TooLarge, q.Reason)
	_, q = takeBy(t, small, strings.Repeat(" ", 20))
	require.Equal(t, InvalidJSON, q.Reason, "the limit itself is allowed")
	_, q = takeBy(t, Rules{}, "")
	require.Equal(t, Empty, q.Reason)

	refused(t, NotAnObject, `[{"a":1,"a":2},1e999,`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`]`)
	refused(t, NULCharacter, `["\u0000"]`)
	refused(t, InvalidValue, `{"action":"","status":"","timestamp":""}`)
	refused(t, MissingField, `{"action":"","status":7,"timestamp":null}`)
	refused(t, InvalidTimestamp, `{"action":"a","status":"success","timestamp":""}`)
}

func TestReasons(t *testing.T) {
	names := make([]string, 0, RejectedByDatabase)
	for _, r := range Reasons() {
		names = append(names, r.String())
	}
	require.Equal(t, strings.Fields(`empty too_large invalid_json invalid_unicode nul_character not_an_object duplicate_key
		too_deep missing_field invalid_type invalid_value invalid_timestamp timestamp_out_of_range too_long
		number_out_of_range hash_mismatch signature_mismatch rejected_by_database`), names)
	require.Equal(t, "Reason(0)", Reason(0).String())
	require.Equal(t, "Reason(19)", (RejectedByDatabase + 1).String())
}

// TestDetailHoldsNoContent takes records full of a secret, broken in every way, and looks for it in the details.
func TestDetailHoldsNoContent(t *testing.T) {
	const secret = "zqjx"
	values := []string{
		secret, `"` + secret + `"`, `{"` + secret + `":1,"` + secret + `":2}`, `{"` + secret, `{"` + secret + `":` + secret,
		`{"` + secret + `\u0000":1}`, `{"` + secret + "\xff\":1}", `{"` + secret + `\ud800":1}`, `{"` + secret + `":1}`,
		with(`"` + secret + `":1e999`), with(`"` + secret + `":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)),
	}
	for f := timestamp; f < fieldCount; f++ {
		for _, value := range []string{`"` + secret + `"`, `"` + strings.Repeat(secret, 3000) + `"`, `{"` + secret + `":1}`} {
			event := `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":"success"}`
			members := strings.Split(strings.Trim(event, "{}"), ",")
			kept := members[:0]
			for _, m := range members {
				if !strings.HasPrefix(m, `"`+f.String()+`"`) {
					kept = append(kept, m)
				}
			}
			values = append(values, "{"+strings.Join(append(kept, `"`+f.String()+`":`+value), ",")+"}")
		}
	}
	signed := rules
	signed.SignatureKey = []byte("secret")
	refusals := 0
	for _, value := range values {
		if _, q := takeBy(t, signed, value); q != nil {
			refusals++
			require.NotContains(t, strings.ToLower(q.Detail), secret, value)
			require.Less(t, len(q.Detail), 200)
		}
	}
	require.Greater(t, refusals, 40)
}

func TestDetailNamesTheField(t *testing.T) {
	require.Equal(t, "action: is missing; every event needs it", refused(t, MissingField, `{"timestamp":"x","status":"x"}`))
	require.Equal(t, "ttl at byte 86: is not a string; send it as one", refused(t, InvalidType, with(`"ttl":7`)))
	require.Equal(t, "ttl at byte 86: has 300 characters; send 255 at most",
		refused(t, TooLong, with(`"ttl":"`+strings.Repeat("é", 300)+`"`)))
	require.Equal(t, "at byte 86: an object has this key twice; send each key once", refused(t, DuplicateKey, with(`"x":0,"x":0`)))
	require.Equal(t, "at byte 0: the value is not an object; send each event as one JSON object", refused(t, NotAnObject, "[]"))
}
