package event

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/hashing"
)

func TestRowOfAllFields(t *testing.T) {
	row := taken(t, `{"timestamp":"2026-11-15T10:30:00.123456789+02:00","ttl":"30d","principalId":"p\u00e9","organizationId":"",`+
		`"action":"a b","targetResourceType":"Patient","targetResourceId":"\"1\"","status":"attempt","outcomeDescription":"\ud83d\ude00<\/>",`+
		`"hash":null,"hashAlgorithm":"SHA-256","eventVersion":"2","correlationId":"c","dataClassification":"pHi","retentionPolicy":"phi_extended",`+
		`"processingLatency":12.9,"archivedAt":"1969-12-31T23:59:59.999999Z","signature":"x","details":{"a":1}, "\u0078" : [1.50, "\n"] ,"n":null}`)
	require.Equal(t, time.Date(2026, 11, 15, 8, 30, 0, 123_456_000, time.UTC).UnixMicro(), row.Timestamp)
	require.Equal(t, "2026-11-15T10:30:00.123456789+02:00", string(row.TimestampText))
	require.Equal(t, "30d", string(row.TTL))
	require.Equal(t, "pé", string(row.PrincipalID))
	require.Equal(t, []byte{}, row.OrganizationID, "an empty string is not null")
	require.Equal(t, "a b", string(row.Action))
	require.Equal(t, "Patient", string(row.TargetResourceType))
	require.Equal(t, `"1"`, string(row.TargetResourceID))
	require.Equal(t, "attempt", string(row.Status))
	require.Equal(t, "😀</>", string(row.OutcomeDescription))
	require.Equal(t, "2", string(row.EventVersion))
	require.Equal(t, "c", string(row.CorrelationID))
	require.Equal(t, "PHI", string(row.DataClassification))
	require.Equal(t, "phi_extended", string(row.RetentionPolicy))
	require.EqualValues(t, 12, row.Latency)
	require.True(t, row.HasArchivedAt)
	require.EqualValues(t, -1, row.ArchivedAt)
	require.Equal(t, `{"signature":"x","details":{"a":1},"\u0078" : [1.50, "\n"]}`, string(row.Details))
	require.Equal(t, `action:"a b"|organizationId:null|outcomeDescription:"😀</>"|principalId:"pé"|status:"attempt"|`+
		`targetResourceId:"\"1\""|targetResourceType:"Patient"|timestamp:"2026-11-15T10:30:00.123456789+02:00"`, string(row.Prehash))
	require.Equal(t, hashing.Hex(row.Prehash), row.Hash)
}

func TestRowOfTheLeast(t *testing.T) {
	for _, value := range []string{"{" + required + "}", with(`"ttl":null,"details":null,"hash":null,"signature":null,"retentionPolicy":null,` +
		`"processingLatency":null,"archivedAt":null,"dataClassification":null,"eventVersion":null,"x":null`)} {
		row := taken(t, value)
		require.Equal(t, "1.0", string(row.EventVersion))
		require.Equal(t, "INTERNAL", string(row.DataClassification))
		require.Equal(t, "standard", string(row.RetentionPolicy))
		for _, null := range [][]byte{
			row.TimestampText, row.TTL, row.PrincipalID, row.OrganizationID, row.TargetResourceType, row.TargetResourceID,
			row.OutcomeDescription, row.CorrelationID, row.Details,
		} {
			require.Nil(t, null)
		}
		require.Zero(t, row.Latency)
		require.False(t, row.HasArchivedAt)
		require.Zero(t, row.ArchivedAt)
	}
}

func TestFields(t *testing.T) {
	for _, c := range []struct {
		reason  Reason
		members string
	}{
		{InvalidType, `"ttl":1`},
		{InvalidType, `"ttl":{}`},
		{InvalidType, `"ttl":[]`},
		{InvalidType, `"ttl":true`},
		{InvalidType, `"ttl":false`},
		{InvalidType, `"principalId":-1`},
		{InvalidType, `"organizationId":1`},
		{InvalidType, `"targetResourceType":1`},
		{InvalidType, `"targetResourceId":12`},
		{InvalidType, `"outcomeDescription":["x"]`},
		{InvalidType, `"correlationId":1`},
		{InvalidType, `"hash":1`},
		{InvalidType, `"hashAlgorithm":256`},
		{InvalidType, `"eventVersion":1.0`},
		{InvalidType, `"dataClassification":1`},
		{InvalidType, `"archivedAt":1700000000`},
		{InvalidType, `"retentionPolicy":true`},
		{InvalidType, `"retentionPolicy":[2555]`},
		{InvalidType, `"retentionPolicy":{}`},
		{InvalidType, `"processingLatency":"12"`},
		{InvalidType, `"processingLatency":true`},
		{InvalidType, `"processingLatency":[]`},
		{InvalidType, `"processingLatency":{}`},
		{InvalidType, `"\u0074tl":1`},
		{InvalidValue, `"hash":""`},
		{InvalidValue, `"hash":"` + strings.Repeat("a", 63) + `"`},
		{InvalidValue, `"hash":"` + strings.Repeat("a", 65) + `"`},
		{InvalidValue, `"hash":"` + strings.Repeat("a", 63) + `g"`},
		{InvalidValue, `"hash":"` + strings.Repeat("a", 62) + `é"`},
		{InvalidValue, `"hash":"` + strings.Repeat("a", 63) + `\u0010"`},
		{InvalidValue, `"hashAlgorithm":""`},
		{InvalidValue, `"hashAlgorithm":"sha-256"`},
		{InvalidValue, `"hashAlgorithm":"SHA256"`},
		{InvalidValue, `"hashAlgorithm":"SHA-256 "`},
		{InvalidValue, `"dataClassification":""`},
		{InvalidValue, `"dataClassification":" PHI"`},
		{InvalidValue, `"dataClassification":"PHİ"`},
		{InvalidValue, `"dataClassification":"PHI\n"`},
		{InvalidValue, `"dataClassification":"RESTRICTED"`},
		{TooLong, `"eventVersion":"` + strings.Repeat("1", 21) + `"`},
		{TooLong, `"retentionPolicy":"` + strings.Repeat("x", 51) + `"`},
		{InvalidTimestamp, `"archivedAt":""`},
		{InvalidTimestamp, `"archivedAt":"2026-11-15"`},
	} {
		refused(t, c.reason, with(c.members))
	}
	for _, text := range []string{"phi", "PHI", "Public", "iNTERNAL", "confidential"} {
		require.Equal(t, strings.ToUpper(text), string(taken(t, with(`"dataClassification":"`+text+`"`)).DataClassification))
	}
	require.Equal(t, "PHI", string(taken(t, with(`"dataClassification":"\u0070hi"`)).DataClassification))
	row := taken(t, with(`"eventVersion":"","retentionPolicy":"","ttl":"","outcomeDescription":"","hashAlgorithm":"SHA\u002d256"`))
	require.Equal(t, []byte{}, row.EventVersion)
	require.Equal(t, []byte{}, row.RetentionPolicy)
	require.Equal(t, []byte{}, row.TTL)
	require.Equal(t, []byte{}, row.OutcomeDescription)
	require.Contains(t, string(row.Prehash), "outcomeDescription:null")
	require.Equal(t, `{"Ttl":1,"PRINCIPALID":2,"hash ":3}`, string(taken(t, with(`"Ttl":1,"PRINCIPALID":2,"hash ":3`)).Details))
	require.Equal(t, " x ", string(taken(t, with(`"ttl":" x "`)).TTL), "nothing is trimmed")
	require.EqualValues(t, -62_167_219_200_000_000, taken(t, with(`"archivedAt":"0000-01-01T00:00:00"`)).ArchivedAt)
}

func TestRequired(t *testing.T) {
	for _, c := range []struct {
		reason Reason
		value  string
	}{
		{MissingField, `{"action":"a","status":"success"}`},
		{MissingField, `{"timestamp":"2026-11-15T10:30:00Z","status":"success"}`},
		{MissingField, `{"timestamp":"2026-11-15T10:30:00Z","action":"a"}`},
		{MissingField, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","Status":"success"}`},
		{MissingField, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","x":{"status":"success"}}`},
		{InvalidType, `{"timestamp":1763202600000,"action":"a","status":"success"}`},
		{InvalidType, `{"timestamp":"2026-11-15T10:30:00Z","action":false,"status":"success"}`},
		{InvalidType, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":["success"]}`},
		{InvalidValue, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":""}`},
		{InvalidValue, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":"Success"}`},
		{InvalidValue, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":"success "}`},
		{InvalidValue, `{"timestamp":"2026-11-15T10:30:00Z","action":"a","status":"` + strings.Repeat("s", 300) + `"}`},
	} {
		refused(t, c.reason, c.value)
	}
	for _, status := range []string{"attempt", "success", "failure", `\u0066ailure`} {
		taken(t, `{"timestamp":"2026-11-15T10:30:00Z","action":" ","status":"`+status+`"}`)
	}
}

// TestLengths counts code points at the limit and one over it, of one byte, of two and four, and escaped.
func TestLengths(t *testing.T) {
	for f, limit := range map[field]int{
		ttl: 255, principalID: 255, organizationID: 255, targetResourceType: 255, targetResourceID: 255, correlationID: 255, action: 255,
		outcomeDescription: 10_000, eventVersion: 20, retentionPolicy: 50,
	} {
		members := `{"timestamp":"2026-11-15T10:30:00Z","status":"success","action":"a",`
		if f == action {
			members = `{"timestamp":"2026-11-15T10:30:00Z","status":"success",`
		}
		for _, character := range []string{"x", "é", "😀", `\n`, `\u00e9`, `\ud83d\ude00`} {
			value := func(n int) string {
				return fmt.Sprintf(`%s"%s":"%s"}`, members, f, strings.Repeat(character, n))
			}
			taken(t, value(limit))
			refused(t, TooLong, value(limit+1))
		}
	}
}

func TestHashOfTheEvent(t *testing.T) {
	hash := taken(t, with(`"principalId":"u"`)).Hash
	lower, upper := string(hash[:]), strings.ToUpper(string(hash[:]))
	require.NotEqual(t, lower, upper)
	for _, proof := range []string{lower, upper, lower[:32] + upper[32:], lower[:63] + fmt.Sprintf(`\u%04x`, lower[63])} {
		row := taken(t, with(`"principalId":"u","hash":"`+proof+`"`))
		require.Equal(t, lower, string(row.Hash[:]))
		require.Nil(t, row.Details)
	}
	for i := range lower {
		wrong := []byte(lower)
		wrong[i] ^= 1 // 9 becomes 8, a becomes the no-digit '`', so:
		if hexDigit(wrong[i]) < 0 {
			wrong[i] = '0'
		}
		refused(t, HashMismatch, with(`"principalId":"u","hash":"`+string(wrong)+`"`))
		wrong[i] = 'g'
		refused(t, InvalidValue, with(`"principalId":"u","hash":"`+string(wrong)+`"`))
	}
	refused(t, HashMismatch, with(`"principalId":"U","hash":"`+lower+`"`))
	taken(t, with(`"principalId":"u","organizationId":"","ttl":"not hashed","hash":"`+lower+`"`))
}

func TestSignature(t *testing.T) {
	signed := rules
	signed.SignatureKey = []byte("secret")
	hash := taken(t, with(`"principalId":"u"`)).Hash
	right := hashing.Signature([]byte("secret"), string(hash[:]))
	event := func(signature string) string { return with(`"principalId":"u","signature":` + signature) }

	for _, good := range []string{"null", `"` + right + `"`, `"` + strings.ToUpper(right) + `"`, `"` + right[:63] + fmt.Sprintf(`\u%04x"`, right[63])} {
		row, q := takeBy(t, signed, event(good))
		require.Nil(t, q, good)
		if good == "null" {
			require.Nil(t, row.Details)
		} else {
			require.Equal(t, `{"signature":`+good+`}`, string(row.Details))
		}
	}
	digit := strings.IndexAny(right, "0123456789")
	folded := right[:digit] + fmt.Sprintf(`\u%04x`, right[digit]-0x20) + right[digit+1:] // differs by 0x20, not by case
	for _, bad := range []string{`""`, `"` + right[:63] + `"`, `"` + right + `0"`, `"` + strings.Repeat("0", 64) + `"`, `"` + folded + `"`} {
		_, q := takeBy(t, signed, event(bad))
		require.NotNil(t, q, bad)
		require.Equal(t, SignatureMismatch.String(), q.Reason.String(), bad)
		taken(t, event(bad)) // without a key nobody looks at it
	}
	for _, bad := range []string{"1", "{}", "[]", "true"} {
		_, q := takeBy(t, signed, event(bad))
		require.NotNil(t, q, bad)
		require.Equal(t, InvalidType.String(), q.Reason.String(), bad)
		require.Equal(t, `{"signature":`+bad+`}`, string(taken(t, event(bad)).Details))
	}
}

func TestRange(t *testing.T) {
	const day = 24 * time.Hour
	horizon := rules.Horizon
	for _, c := range []struct {
		name        string
		record, now time.Time
		event       time.Time
		want        Reason
	}{
		{"now", clock, clock, clock, 0},
		{"the horizon", clock, clock, clock.Add(-horizon), 0},
		{"before the horizon", clock, clock, clock.Add(-horizon - time.Microsecond), TimestampOutOfRange},
		{"a day ahead", clock, clock, clock.Add(day), 0},
		{"over a day ahead", clock, clock, clock.Add(day + time.Microsecond), TimestampOutOfRange},
		{"nanoseconds over, dropped", clock, clock, clock.Add(day + 999*time.Nanosecond), 0},
		{"redriven years later", clock.Add(-horizon), clock, clock.Add(-2 * horizon), 0},
		{"redriven, too old for its record", clock.Add(-horizon), clock, clock.Add(-2*horizon - time.Millisecond), TimestampOutOfRange},
		{"ahead of an old record", clock.Add(-day), clock, clock.Add(time.Microsecond), TimestampOutOfRange},
		{"record half a day ahead", clock.Add(day / 2), clock, clock.Add(day + day/2), 0},
		{"record half a day ahead, event more", clock.Add(day / 2), clock, clock.Add(day + day/2 + time.Millisecond), TimestampOutOfRange},
		{"record years ahead is capped", clock.Add(1000 * day), clock, clock.Add(2 * day), 0},
		{"record years ahead is capped, over", clock.Add(1000 * day), clock, clock.Add(2*day + time.Microsecond), TimestampOutOfRange},
		{"record years ahead, event too old", clock.Add(1000 * day), clock, clock.Add(day - horizon - time.Microsecond), TimestampOutOfRange},
		{"record of the last instant", time.UnixMilli(math.MaxInt64), clock, clock.Add(2 * day), 0},
		{"no record timestamp", time.UnixMilli(-1), clock, clock.Add(day), 0},
		{"no record timestamp, over", time.UnixMilli(-1), clock, clock.Add(day + time.Microsecond), TimestampOutOfRange},
		{"no record timestamp, the clock counts", time.UnixMilli(-1), clock.Add(day), clock.Add(2 * day), 0},
		{"record of 1970", time.UnixMilli(0), clock, clock, TimestampOutOfRange},
	} {
		t.Run(c.name, func(t *testing.T) {
			value := `{"timestamp":"` + c.event.UTC().Format("2006-01-02T15:04:05.000000000Z") + `","action":"a","status":"success"}`
			row, q := NewDecoder(rules).Take(&Record{Timestamp: c.record.UnixMilli(), Value: []byte(value)}, c.now)
			if c.want == 0 {
				require.Nil(t, q)
				require.Equal(t, c.event.UnixMicro(), row.Timestamp)
				return
			}
			require.NotNil(t, q)
			require.Equal(t, c.want.String(), q.Reason.String())
		})
	}
}
