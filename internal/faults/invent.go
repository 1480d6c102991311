package faults

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxEventBytes is the workers' AUDITSINK_EVENT_MAX_BYTES: small, so that a record over it costs little.
const maxEventBytes = 16 << 10

// textColumns are the columns of audit_log that hold texts of the event.
var textColumns = []string{
	"timestamp_text", "ttl", "principal_id", "organization_id", "action", "target_resource_type", "target_resource_id", "status", "outcome_description",
	"hash", "hash_algorithm", "event_version", "correlation_id", "data_classification", "retention_policy",
}

// row is what audit_log must hold of an event. It is known without the code under test: the event was made from it.
type row struct {
	timestamp time.Time
	archived  *time.Time
	// texts are those of textColumns; what is missing is NULL.
	texts   map[string]string
	details string // a JSON object, empty for NULL
}

// record is one record that was invented and sent, and what must become of it: a row, or where reason isn't empty, a quarantined record.
type record struct {
	kgo    *kgo.Record
	row    row
	reason string

	// The rest is written under the ledger's lock.
	fate   fate
	offset int64
}

// fate is what the producer learnt about a record.
type fate uint8

const (
	pending   fate = iota // sent, and not answered yet
	uncertain             // failed as far as the producer knows: it may be in the log
	aborted               // in a transaction that was aborted
	acknowledged
)

// recipe says what to invent.
type recipe struct {
	// poison, late and refused are shares of the events: of those that can't be rows, of other months, and of those that a constraint of the
	// database's owner refuses (see refusedAction).
	poison, late, refused float64
	// skew has records stamped by clocks that are years off.
	skew bool
	// place and refusedAt, where given, tell by a record's number which are poison, and which the constraint refuses.
	place, refusedAt func(n int) bool
}

// refusedAction is the action of events that a scenario's CHECK constraint refuses.
const refusedAction = "refused.by.dba"

// inventor makes events up. It belongs to one goroutine.
type inventor struct {
	recipe recipe
	rng    *rand.Rand
	tag    string // makes its events differ from all others
	next   int
	months []time.Time // of late events: few, for each costs a table partition
}

func newInventor(tag string, seed uint64, r recipe) *inventor {
	rng := rand.New(rand.NewPCG(seed, 0xfa017)) //nolint:gosec // events have to be repeatable, not secret
	v := &inventor{recipe: r, rng: rng, tag: tag}
	for range 3 {
		v.months = append(v.months, time.Now().UTC().AddDate(0, -1-rng.IntN(40), -rng.IntN(20)))
	}
	return v
}

// member is a member of an event, its value as JSON.
type member struct{ name, json string }

// draft is an event being made up.
type draft struct {
	members []member
	row     row
	stamp   time.Time // the Kafka record's
}

func (d *draft) set(name, json string) {
	for i := range d.members {
		if d.members[i].name == name {
			d.members[i].json = json
			return
		}
	}
	d.members = append(d.members, member{name, json})
}

func (d *draft) remove(name string) {
	d.members = slices.DeleteFunc(d.members, func(m member) bool { return m.name == name })
}

// bytes writes the event.
func (d *draft) bytes() []byte {
	var b bytes.Buffer
	for i, m := range d.members {
		b.WriteString([]string{"{", ","}[min(i, 1)])
		b.WriteString(quote(m.name))
		b.WriteString([]string{":", ": "}[len(m.json)%2])
		b.WriteString(m.json)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// invent makes up the next record.
func (v *inventor) invent() *record {
	v.next++
	d := v.draft()
	r := &record{row: d.row, kgo: &kgo.Record{Timestamp: d.stamp}, offset: -1}
	switch p := v.rng.Float64(); {
	case v.recipe.place != nil && v.recipe.place(v.next-1), p < v.recipe.poison:
		kind := poisons[v.rng.IntN(len(poisons))]
		r.kgo.Value, r.reason = kind.spoil(v, d), kind.reason
	case v.recipe.refusedAt != nil && v.recipe.refusedAt(v.next-1), p < v.recipe.poison+v.recipe.refused:
		d.set("action", quote(refusedAction))
		d.remove("hash")
		d.row.texts["action"] = refusedAction
		d.row.texts["hash"] = eventHash(d) // what the row is once it is taken
		r.kgo.Value, r.reason = d.bytes(), "rejected_by_database"
	default:
		r.kgo.Value = d.bytes()
	}
	if v.rng.IntN(2) == 0 || len(r.kgo.Value) == 0 { // a record without a value is told from others by its key
		r.kgo.Key = []byte(v.id() + []string{"", "\x00", "é\xff"}[v.rng.IntN(3)])
	}
	for range v.rng.IntN(3) {
		header := kgo.RecordHeader{Key: []string{"trace", "trace", "h\xff"}[v.rng.IntN(3)], Value: []byte(v.id() + "\x00\xff")}
		if v.rng.IntN(4) == 0 {
			header.Value = nil
		}
		r.kgo.Headers = append(r.kgo.Headers, header)
	}
	return r
}

func (v *inventor) id() string { return fmt.Sprintf("%s-%06d", v.tag, v.next) }

// draft makes up an event that is a row, with the row.
func (v *inventor) draft() *draft {
	d := &draft{row: row{texts: map[string]string{
		"hash_algorithm": "SHA-256", "event_version": "1.0", "data_classification": "INTERNAL", "retention_policy": "standard",
	}}}
	text := func(name, column, value string) {
		d.set(name, quote(value))
		d.row.texts[column] = value
	}
	d.stamp = time.Now().Truncate(time.Millisecond)
	at := d.stamp.Add(-time.Duration(v.rng.Int64N(int64(time.Hour))))
	if v.rng.Float64() < v.recipe.late {
		at = v.months[v.rng.IntN(len(v.months))].Add(time.Duration(v.rng.Int64N(int64(time.Hour))))
	}
	if v.recipe.skew && v.rng.IntN(2) == 0 {
		// A producer whose clock is behind stamps both with it; one that is ahead would be refused for its events, so only the record is.
		// Few distances, for each month costs a table partition.
		if back := time.Duration(1+v.rng.IntN(2)) * 400 * 24 * time.Hour; v.rng.IntN(2) == 0 {
			d.stamp, at = d.stamp.Add(-back), at.Add(-back)
		} else {
			d.stamp = d.stamp.Add(back)
		}
	}
	v.timestamp(d, at)
	text("action", "action", []string{"data.read", "data.write", "auth.login", v.text()}[v.rng.IntN(4)])
	text("status", "status", []string{"attempt", "success", "failure"}[v.rng.IntN(3)])
	text("correlationId", "correlation_id", v.id())
	for _, o := range []struct{ name, column string }{
		{"principalId", "principal_id"},
		{"organizationId", "organization_id"},
		{"targetResourceType", "target_resource_type"},
		{"targetResourceId", "target_resource_id"},
		{"outcomeDescription", "outcome_description"},
		{"ttl", "ttl"},
	} {
		if v.rng.IntN(3) > 0 {
			text(o.name, o.column, v.text())
		}
	}
	v.extras(d)
	sum := eventHash(d)
	d.row.texts["hash"] = sum
	if v.rng.IntN(3) == 0 {
		d.set("hash", quote([]string{sum, strings.ToUpper(sum)}[v.rng.IntN(2)]))
	}
	v.rng.Shuffle(len(d.members), func(i, j int) { d.members[i], d.members[j] = d.members[j], d.members[i] })
	return d
}

const canonical = "2006-01-02T15:04:05.000Z"

// timestamp gives the event an instant, written in one of the ways that are taken.
func (v *inventor) timestamp(d *draft, at time.Time) {
	at = at.UTC().Truncate(time.Microsecond)
	text := at.Format([]string{
		canonical, canonical, "2006-01-02T15:04:05.000000Z", "2006-01-02T15:04:05.000000", "2006-01-02T15:04:05Z", "2006-01-02t15:04:05.000000+00:00",
	}[v.rng.IntN(6)])
	if v.rng.IntN(8) == 0 {
		text = at.In(time.FixedZone("", 5*3600+1800)).Format("2006-01-02T15:04:05.000000") + "123+05:30" // the last digits are dropped
	}
	switch len(text) {
	case len(canonical):
		at = at.Truncate(time.Millisecond)
	case len("2006-01-02T15:04:05Z"):
		at = at.Truncate(time.Second)
	}
	d.set("timestamp", quote(text))
	d.row.timestamp = at
	if text != at.Format(canonical) {
		d.row.texts["timestamp_text"] = text
	}
}

// extras gives the event some of the members that have rules or defaults of their own.
func (v *inventor) extras(d *draft) {
	some := func(n int) bool { return v.rng.IntN(n) == 0 }
	if some(4) {
		class := []string{"PUBLIC", "INTERNAL", "CONFIDENTIAL", "PHI"}[v.rng.IntN(4)]
		d.set("dataClassification", quote([]string{class, strings.ToLower(class)}[v.rng.IntN(2)]))
		d.row.texts["data_classification"] = class
	}
	switch v.rng.IntN(6) {
	case 0:
		d.set("retentionPolicy", "2555")
		d.row.texts["retention_policy"] = "2555"
	case 1:
		d.set("retentionPolicy", quote("phi_extended"))
		d.row.texts["retention_policy"] = "phi_extended"
	}
	if some(4) {
		d.set("eventVersion", quote("2.1"))
		d.row.texts["event_version"] = "2.1"
	}
	if some(4) {
		d.set("hashAlgorithm", quote("SHA-256"))
	}
	if some(4) {
		d.set("processingLatency", strconv.FormatFloat(v.rng.Float64()*1000, 'f', 3, 64))
	}
	if some(6) {
		at := time.Now().UTC().Truncate(time.Second)
		d.set("archivedAt", quote(at.Format(time.RFC3339)))
		d.row.archived = &at
	}
	var details []string
	for i := range v.rng.IntN(4) {
		name := []string{"sessionContext", "gdpr", "ünïcode", "details"}[i]
		value := []string{
			`{"ip":"10.0.0.1","n":9007199254740993,"x":[1,null,true,2.50]}`, quote(v.text()), "-17", "[]", "false", `{"a":{"b":{"c":"\u00e9"}}}`,
		}[v.rng.IntN(6)]
		d.set(name, value)
		details = append(details, quote(name)+":"+value)
	}
	if len(details) > 0 {
		d.row.details = "{" + strings.Join(details, ",") + "}"
	}
}

// text makes up a text that has to be kept as it is.
func (v *inventor) text() string {
	parts := []string{"alice", " ", `"quoted"`, `back\slash`, "Zoë", "患者", "👩‍⚕️", "\n\t", "<b>&amp;", "\u2028", "'; DROP TABLE audit_log; --", "\x01\x1f\x7f", "|action:null", "null"}
	var b strings.Builder
	for range 1 + v.rng.IntN(4) {
		b.WriteString(parts[v.rng.IntN(len(parts))])
	}
	return b.String()
}

// quote writes a JSON string.
func quote(text string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		panic(err) // no string fails
	}
	return strings.TrimSpace(b.String())
}

// eventHash is the event hash, by the design's words and not by the package under test.
func eventHash(d *draft) string {
	var pairs []string
	for _, p := range []struct{ key, column string }{
		{"action", "action"},
		{"organizationId", "organization_id"},
		{"outcomeDescription", "outcome_description"},
		{"principalId", "principal_id"},
		{"status", "status"},
		{"targetResourceId", "target_resource_id"},
		{"targetResourceType", "target_resource_type"},
	} {
		pairs = append(pairs, p.key+":"+stringify(d.row.texts[p.column]))
	}
	received, ok := d.row.texts["timestamp_text"]
	if !ok {
		received = d.row.timestamp.Format(canonical)
	}
	sum := sha256.Sum256([]byte(strings.Join(append(pairs, "timestamp:"+stringify(received)), "|")))
	return hex.EncodeToString(sum[:])
}

// stringify is ECMAScript's JSON.stringify of a text, and null for an empty one.
func stringify(text string) string {
	if text == "" {
		return "null"
	}
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\t': `\t`, '\n': `\n`, '\f': `\f`, '\r': `\r`}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch escape, ok := short[r]; {
		case ok:
			b.WriteString(escape)
		case r < 0x20:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
