package event

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// copied returns a row that shares nothing with a decoder.
func copied(row *Row) *Row {
	if row == nil {
		return nil
	}
	c := *row
	for _, text := range []*[]byte{
		&c.TimestampText, &c.TTL, &c.PrincipalID, &c.OrganizationID, &c.Action, &c.TargetResourceType, &c.TargetResourceID, &c.Status,
		&c.OutcomeDescription, &c.CorrelationID, &c.EventVersion, &c.DataClassification, &c.RetentionPolicy, &c.Details, &c.Prehash,
	} {
		if *text != nil {
			*text = append([]byte{}, *text...)
		}
	}
	return &c
}

// everyColumn is a member for each optional column, with a value that is not its default, and one for the details.
const everyColumn = `"ttl":"\u0031d","principalId":"p","organizationId":"o","targetResourceType":"t","targetResourceId":"i",` +
	`"outcomeDescription":"d","correlationId":"c","eventVersion":"2","dataClassification":"PHI","retentionPolicy":2555,` +
	`"processingLatency":7,"archivedAt":"2026-11-15T10:30:00Z","x":1`

// TestNothingIsLeftOver takes the least event after one that fills every column, and after one refused late.
func TestNothingIsLeftOver(t *testing.T) {
	least := `{"timestamp":"2026-11-15T10:30:00.000Z","action":"a","status":"success"}`
	want := copied(taken(t, least))
	for _, before := range []string{with(everyColumn), with(everyColumn + `,"hash":"` + strings.Repeat("0", 64) + `"`), with(everyColumn + `,"ttl":1`)} {
		d := NewDecoder(rules)
		d.Take(&Record{Timestamp: clock.UnixMilli(), Value: []byte(before)}, clock)
		row, q := d.Take(&Record{Timestamp: clock.UnixMilli(), Value: []byte(least)}, clock)
		require.Nil(t, q)
		require.Equal(t, want, copied(row))
	}
}

// TestDirtyDecoder takes the corpus in random order by one decoder: each answer is what a fresh one gives.
func TestDirtyDecoder(t *testing.T) {
	signed := rules
	signed.SignatureKey = []byte("secret")
	var values []string
	for _, c := range readCorpus(t) {
		values = append(values, string(c.Value))
	}
	for _, v := range readVectors(t)[:30] {
		values = append(values, string(v.Event), `{"signature":"`+v.Signature+`",`+string(v.Event[1:]))
	}
	for _, f := range faulty {
		values = append(values, with(f.members))
	}
	values = append(values, with(everyColumn), strings.Repeat("[", 1000), with(`"x":{`+numbered(100, `"k1":0`)+`}`), with(`"\u0061":"\u0062"`))
	rapid.Check(t, func(t *rapid.T) {
		dirty := NewDecoder(signed)
		for _, value := range rapid.SliceOfN(rapid.SampledFrom(values), 1, 20).Draw(t, "values") {
			rec := &Record{Timestamp: clock.UnixMilli(), Value: []byte(value)}
			fresh := NewDecoder(signed)
			row, q := dirty.Take(rec, clock)
			first, firstQ := copied(row), q
			row, q = fresh.Take(rec, clock)
			require.Equal(t, copied(row), first)
			require.Equal(t, q, firstQ)
			row, q = dirty.Take(rec, clock)
			require.Equal(t, copied(row), first, "twice the same")
			require.Equal(t, q, firstQ)
			require.Equal(t, value, string(rec.Value), "the record is not written to")
		}
	})
}

// TestGeneratedEvents takes events that encoding/json wrote, and finds in the row what went in.
func TestGeneratedEvents(t *testing.T) {
	text := rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 && r != '\ufffd' }), 0, 20, -1)
	rapid.Check(t, func(t *rapid.T) {
		in := map[string]any{"timestamp": "2026-11-15T10:30:00Z", "action": text.Filter(func(s string) bool { return s != "" }).Draw(t, "action"), "status": "failure"}
		optional := []string{"ttl", "principalId", "organizationId", "targetResourceType", "targetResourceId", "outcomeDescription", "correlationId", "eventVersion"}
		for _, key := range rapid.SliceOfDistinct(rapid.SampledFrom(optional), rapid.ID[string]).Draw(t, "fields") {
			in[key] = text.Draw(t, key)
		}
		details := map[string]any{}
		for _, key := range rapid.SliceOfDistinct(text.Filter(func(s string) bool { return fieldOf([]byte(s)) == unknown }), rapid.ID[string]).Draw(t, "details") {
			details[key] = text.Draw(t, "value")
			in[key] = details[key]
		}
		value, err := json.Marshal(in)
		require.NoError(t, err)
		row, q := NewDecoder(rules).Take(&Record{Timestamp: -1, Value: value}, clock)
		require.Nil(t, q, "%s", value)
		for key, got := range map[string][]byte{
			"action": row.Action, "status": row.Status, "ttl": row.TTL, "principalId": row.PrincipalID, "organizationId": row.OrganizationID,
			"targetResourceType": row.TargetResourceType, "targetResourceId": row.TargetResourceID, "outcomeDescription": row.OutcomeDescription,
			"correlationId": row.CorrelationID, "timestamp": row.TimestampText,
		} {
			if want, there := in[key]; there {
				require.NotNil(t, got, key)
				require.Equal(t, want, string(got), key)
			} else {
				require.Nil(t, got, key)
			}
		}
		out := map[string]any{}
		if row.Details != nil {
			require.NoError(t, json.Unmarshal(row.Details, &out))
		}
		require.Equal(t, details, out)
	})
}

func TestNoAllocations(t *testing.T) {
	signed := rules
	signed.SignatureKey = []byte("secret")
	v := readVectors(t)[1]
	values := []string{
		benchmarkEvent,
		`{"hash":"` + v.SHA256 + `","signature":"` + v.Signature + `",` + string(v.Event[1:]),
		with(`"retentionPolicy":2555,"processingLatency":1.5e3,"archivedAt":"2026-11-15T10:30:00.1+02:00"`),
		with(`"x":{` + numbered(100, `"\u006b100":{"a":"\n"}`) + `}`),
	}
	for _, value := range values {
		d := NewDecoder(signed)
		rec := &Record{Timestamp: clock.UnixMilli(), Value: []byte(value)}
		require.Zero(t, testing.AllocsPerRun(100, func() {
			if _, q := d.Take(rec, clock); q != nil {
				t.Fatal(q)
			}
		}), value)
	}
	d := NewDecoder(signed)
	records, _ := sampleRecords()
	next := 0
	require.Zero(t, testing.AllocsPerRun(2*len(records), func() {
		if _, q := d.Take(&records[next%len(records)], benchmarkNow); q != nil {
			t.Fatal(q)
		}
		next++
	}), "events of all the sample's kinds")
}

// hostile are texts of about a mebibyte that drive each part of the decoder to its worst.
func hostile() map[string]string {
	const n = 1 << 20
	keys := make([]string, 100_000)
	for i := range keys {
		keys[i] = `"k` + itoa(i) + `":0`
	}
	escaped := make([]string, 60_000)
	for i := range escaped {
		escaped[i] = `"\u006b` + itoa(i) + `":0`
	}
	return map[string]string{
		"brackets, open":       strings.Repeat("[", n),
		"brackets":             strings.Repeat("[", n/2) + strings.Repeat("]", n/2),
		"brackets in an event": with(`"x":` + strings.Repeat("[", n/2) + strings.Repeat("]", n/2)),
		"braces, open":         strings.Repeat(`{"":`, n/4),
		"braces":               strings.Repeat(`{"":`, n/5) + "0" + strings.Repeat("}", n/5),
		"empty objects":        with(`"x":[` + strings.Repeat("{},", n/3) + `{}]`),
		"keys":                 with(strings.Join(keys, ",")),
		"keys inside":          with(`"x":{` + strings.Join(keys, ",") + `}`),
		"keys twice":           with(`"x":{` + strings.Join(keys, ",") + `,` + strings.Join(keys[:1], ",") + `}`),
		"escaped keys":         with(`"x":{` + strings.Join(escaped, ",") + `}`),
		"escapes":              with(`"x":"` + strings.Repeat(`\n`, n/2) + `"`),
		"unicode escapes":      with(`"outcomeDescription":"` + strings.Repeat(`\ud83d\ude00`, n/12) + `"`),
		"escaped key":          with(`"` + strings.Repeat(`\n`, n/2) + `":1`),
		"digits":               with(`"processingLatency":` + strings.Repeat("9", n)),
		"fraction":             with(`"processingLatency":0.` + strings.Repeat("0", n)),
		"exponent":             with(`"processingLatency":1e` + strings.Repeat("9", n)),
		"spaces":               with(`"x":` + strings.Repeat(" ", n) + "1"),
		"characters":           with(`"outcomeDescription":"` + strings.Repeat("患", n/3) + `"`),
		"one unknown string":   with(`"x":"` + strings.Repeat("x", n) + `"`),
	}
}

// TestMemoryIsLinear counts what a fresh decoder allocates for the worst texts, and what it keeps of that.
func TestMemoryIsLinear(t *testing.T) {
	wide := rules
	wide.MaxBytes = 4 << 20
	for name, value := range hostile() {
		t.Run(name, func(t *testing.T) {
			d := NewDecoder(wide)
			rec := &Record{Timestamp: clock.UnixMilli(), Value: []byte(value)}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			d.Take(rec, clock)
			runtime.ReadMemStats(&after)
			limit := 8 // times the text: scratch that grows by append allocates several times its last size
			if strings.Contains(name, "braces") || strings.Contains(name, "keys") {
				limit = 40 // a key of four bytes costs two entries of twelve
			}
			if strings.Contains(name, "brackets") {
				limit = 2 // the details, and a bit a level
			}
			require.LessOrEqual(t, after.TotalAlloc-before.TotalAlloc, uint64(limit*len(value)+1<<16))
			require.LessOrEqual(t, after.Mallocs-before.Mallocs, uint64(200))

			d.Take(&Record{Timestamp: clock.UnixMilli(), Value: []byte(benchmarkEvent)}, clock)
			s := &d.scanner
			require.LessOrEqual(t, max(cap(s.details), cap(s.keys.decoded), cap(d.decoded), cap(d.prehash), cap(d.hex)), keepBytes)
			require.LessOrEqual(t, cap(s.keys.stack), keepKeys)
			require.LessOrEqual(t, cap(s.objects)*8, keepBytes)
		})
	}
}

// TestComparisonsOfKeys keeps quadratic comparing to objects small enough for it.
func TestComparisonsOfKeys(t *testing.T) {
	require.LessOrEqual(t, fewKeys, 32)
	require.Equal(t, DuplicateKey, mustRefuse(t, hostile()["keys twice"]).Reason)
}

func mustRefuse(t *testing.T, value string) *Quarantine {
	t.Helper()
	wide := rules
	wide.MaxBytes = 4 << 20
	_, q := takeBy(t, wide, value)
	require.NotNil(t, q)
	return q
}
