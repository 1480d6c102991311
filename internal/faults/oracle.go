package faults

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/twmb/franz-go/pkg/kgo"
)

// querier is a connection, a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// allowance says what a scenario brings about on purpose.
type allowance struct {
	// gaps are the kinds of gaps that may be on record.
	gaps []string
	// halted says that lanes may stand still, and so short of the end of their logs.
	halted bool
	// cut says that the brokers lose what they had acknowledged. Of that nothing need be stored, though it may have been before.
	cut bool
}

// oracle compares what the brokers acknowledged with what the tables hold, lane by lane.
type oracle struct {
	ledgers []*ledger
	logs    []*topicLog
	allowed allowance

	found findings
	lanes map[int32]*lane
	due   map[place]map[int64]*record // what has to be stored, by offset
	lost  map[place]map[int64]*record // what brokers lost after they had acknowledged it
	known map[string]*record          // by correlation ID
	times map[*record]int             // how often each is stored
}

// place is a partition of one incarnation of a topic. A lane of it may have been retired and have a successor.
type place struct {
	incarnation
	partition int32
}

func (p place) String() string { return fmt.Sprintf("%s/%d", p.topic, p.partition) }

// lane is one row of audit_lane, with what has to be stored of it.
type lane struct {
	name  string
	place place
	next  int64
	state string
	log   *laneLog // nil where the topic is no more
	gaps  [][2]int64
	rows  map[int64]int64 // ids by offset
	aside map[int64]string
	// lastID and lastOffset are those of the row before.
	lastID, lastOffset int64
}

// judge looks at the tables and returns what is wrong with them. logs must have been read when the positions had reached their ends.
func judge(ctx context.Context, db querier, ledgers []*ledger, logs []*topicLog, allowed allowance) (*findings, error) {
	o := &oracle{ledgers: ledgers, logs: logs, allowed: allowed, lanes: map[int32]*lane{}, due: map[place]map[int64]*record{}, lost: map[place]map[int64]*record{}, known: map[string]*record{}, times: map[*record]int{}}
	for _, l := range ledgers {
		o.expect(l)
	}
	for _, step := range []func(context.Context, querier) error{o.readLanes, o.readGaps, o.readQuarantine, o.readRows} {
		if err := step(ctx, db); err != nil {
			return nil, err
		}
	}
	for _, l := range o.lanes {
		o.judgeLane(l)
	}
	o.judgeMissing()
	for r, n := range o.times {
		if n > 1 {
			o.found.add(doubled, "event", -1, "%s is stored %d times", describe(r), n)
		}
	}
	return &o.found, nil
}

// describe names a record without telling all of it.
func describe(r *record) string {
	if id := r.row.texts["correlation_id"]; id != "" {
		return "event " + id
	}
	return fmt.Sprintf("record %.40q", r.kgo.Value)
}

// expect notes at which offset each record of a ledger has to be: where it was acknowledged, and where the log has it.
func (o *oracle) expect(l *ledger) {
	put := func(partition int32, at int64, r *record) {
		p := place{l.into, partition}
		if o.due[p] == nil {
			o.due[p], o.lost[p] = map[int64]*record{}, map[int64]*record{}
		}
		if before := o.due[p][at]; before != nil && before != r {
			o.lost[p][at] = before
		}
		o.due[p][at] = r
	}
	for _, r := range l.sent() {
		o.known[r.row.texts["correlation_id"]] = r
		if r.fate == acknowledged {
			put(r.kgo.Partition, r.offset, r)
		}
	}
	for _, log := range o.logs {
		if log.incarnation != l.into {
			continue
		}
		for n, lane := range log.lanes {
			p := place{l.into, n}
			for at, found := range lane.records {
				r := l.find(found)
				switch have := o.due[p][at]; {
				case r == nil:
					o.found.add(brokers, p.String(), at, "a record that nobody sent: %.40q", found.Value)
				case have == nil && r.fate == aborted:
					o.found.add(brokers, p.String(), at, "%s was aborted, and is in the log", describe(r))
				case have == nil && r.fate == acknowledged:
					o.found.add(brokers, p.String(), at, "%s was acknowledged at offset %d, and is here", describe(r), r.offset)
				case have != nil && have != r && o.allowed.cut:
					put(n, at, r)
				case have != nil && have != r:
					o.found.add(brokers, p.String(), at, "holds %s, where %s was acknowledged", describe(r), describe(have))
				case have == nil:
					put(n, at, r)
				}
			}
			for at, r := range o.due[p] {
				if at >= lane.start && lane.records[at] == nil {
					if o.lost[p][at] = r; !o.allowed.cut {
						o.found.add(brokers, p.String(), at, "%s was acknowledged, and isn't in the log", describe(r))
					}
					delete(o.due[p], at) // nothing that could be stored
				}
			}
		}
	}
}

func (o *oracle) readLanes(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `SELECT lane_id, topic, topic_id, partition, next_offset, state FROM audit_lane`)
	if err != nil {
		return fmt.Errorf("read audit_lane: %w", err)
	}
	var id, n int32
	var topic, state string
	var topicID pgtype.UUID
	var next int64
	_, err = pgx.ForEachRow(rows, []any{&id, &topic, &topicID, &n, &next, &state}, func() error {
		l := &lane{
			name: fmt.Sprintf("%s/%d (lane %d)", topic, n, id), place: place{incarnation{topic, topicID.Bytes}, n}, next: next, state: state,
			rows: map[int64]int64{}, aside: map[int64]string{}, lastOffset: -1,
		}
		o.lanes[id] = l
		for _, log := range o.logs {
			if log.incarnation == l.place.incarnation && state != "retired" {
				l.log = log.lanes[n]
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read audit_lane: %w", err)
	}
	return nil
}

func (o *oracle) readGaps(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `SELECT lane_id, kind, from_offset, to_offset FROM audit_gap`)
	if err != nil {
		return fmt.Errorf("read audit_gap: %w", err)
	}
	var id int32
	var kind string
	var from, to int64
	_, err = pgx.ForEachRow(rows, []any{&id, &kind, &from, &to}, func() error {
		l := o.lanes[id]
		switch {
		case l == nil:
			o.found.add(gap, fmt.Sprintf("lane %d", id), from, "a gap of a lane that audit_lane doesn't know")
		case !slices.Contains(o.allowed.gaps, kind):
			o.found.add(gap, l.name, from, "a gap of kind %s up to %d, where there should be none", kind, to)
		default:
			l.gaps = append(l.gaps, [2]int64{from, to})
			if l.log != nil && kind == "retention" && to > l.log.start {
				o.found.add(gap, l.name, from, "a gap up to %d, and the log has all from %d", to, l.log.start)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read audit_gap: %w", err)
	}
	return nil
}

// stored notes that a record is stored once more, and returns it, or nil where the lane has none at this offset.
func (o *oracle) stored(id int32, at int64, what string) (*lane, *record) {
	l := o.lanes[id]
	if l == nil {
		o.found.add(invented, fmt.Sprintf("lane %d", id), at, "a %s of a lane that audit_lane doesn't know", what)
		return nil, nil
	}
	if at >= l.next {
		o.found.add(position, l.name, at, "a %s at or beyond the position %d", what, l.next)
	}
	if slices.ContainsFunc(l.gaps, func(g [2]int64) bool { return g[0] <= at && at < g[1] }) {
		o.found.add(gap, l.name, at, "a %s within a gap on record", what)
	}
	r := o.due[l.place][at]
	if lost := o.lost[l.place][at]; l.state == "retired" && lost != nil {
		r = lost
	}
	if r == nil {
		o.found.add(invented, l.name, at, "a %s, and nothing was acknowledged here", what)
	}
	return l, r
}

func (o *oracle) readQuarantine(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `SELECT lane_id, lane_offset, record_timestamp, key, value, headers::text, reason, state FROM audit_quarantine ORDER BY lane_id, id`)
	if err != nil {
		return fmt.Errorf("read audit_quarantine: %w", err)
	}
	var id int32
	var at int64
	var stamp *time.Time
	var headers *string
	var why, state string
	for rows.Next() {
		var key, value []byte // made anew each time, so that NULL and no bytes can be told apart
		if err := rows.Scan(&id, &at, &stamp, &key, &value, &headers, &why, &state); err != nil {
			return fmt.Errorf("read audit_quarantine: %w", err)
		}
		l, r := o.stored(id, at, "quarantined record")
		if l == nil {
			continue
		}
		if before, ok := l.aside[at]; ok {
			o.found.add(doubled, l.name, at, "quarantined twice, as %s and as %s", before, why)
		}
		l.aside[at] = state
		if r == nil {
			continue
		}
		if state != "redriven" {
			o.times[r]++
		}
		if why != r.reason {
			o.found.add(reason, l.name, at, "%s is quarantined as %q instead of %q", describe(r), why, r.reason)
		}
		for what, same := range map[string]bool{
			"key": same(key, r.kgo.Key), "value": same(value, r.kgo.Value), "headers": sameHeaders(headers, r.kgo.Headers),
			"timestamp": stamp != nil && stamp.Equal(r.kgo.Timestamp),
		} {
			if !same {
				o.found.add(bytesOf, l.name, at, "the %s of %s is not what was sent", what, describe(r))
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read audit_quarantine: %w", err)
	}
	return nil
}

// same tells also no bytes from NULL.
func same(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// sameHeaders compares headers with their text in JSON, by the words of the table's comment.
func sameHeaders(text *string, sent []kgo.RecordHeader) bool {
	if text == nil || len(sent) == 0 {
		return text == nil && len(sent) == 0
	}
	var want []any
	for _, h := range sent {
		var value any
		if h.Value != nil {
			value = base64.StdEncoding.EncodeToString(h.Value)
		}
		if strings.ToValidUTF8(h.Key, "") == h.Key {
			want = append(want, []any{h.Key, value})
		} else {
			want = append(want, []any{nil, value, base64.StdEncoding.EncodeToString([]byte(h.Key))})
		}
	}
	var got []any
	return json.Unmarshal([]byte(*text), &got) == nil && reflect.DeepEqual(got, want)
}

// readRows reads audit_log in the order of its offsets.
func (o *oracle) readRows(ctx context.Context, db querier) error {
	rows, err := db.Query(ctx, `SELECT lane_id, lane_offset, id, timestamp, archived_at, processing_latency, details::text, `+
		strings.Join(textColumns, ", ")+` FROM audit_log ORDER BY lane_id, lane_offset, id`)
	if err != nil {
		return fmt.Errorf("read audit_log: %w", err)
	}
	var laneID *int32
	var at *int64
	var id int64
	var stamp time.Time
	var archived *time.Time
	var latency *int32
	var details *string
	texts := make([]*string, len(textColumns))
	into := []any{&laneID, &at, &id, &stamp, &archived, &latency, &details}
	for i := range texts {
		into = append(into, &texts[i])
	}
	_, err = pgx.ForEachRow(rows, into, func() error {
		if laneID == nil || at == nil {
			o.found.add(invented, "audit_log", -1, "row %d has no lane and offset", id)
			return nil
		}
		l, r := o.stored(*laneID, *at, "row")
		if l == nil {
			return nil
		}
		o.fit(l, *at, id)
		if r == nil {
			return nil
		}
		if correlation := texts[slices.Index(textColumns, "correlation_id")]; correlation != nil {
			if other := o.known[*correlation]; other != nil && other != r && r.row.texts["correlation_id"] != *correlation {
				o.found.add(invented, l.name, *at, "the row of %s, which was acknowledged at offset %d of partition %d", describe(other), other.offset, other.kgo.Partition)
				o.times[other]++
				return nil
			}
		}
		o.times[r]++
		if r.reason != "" && l.aside[*at] != "redriven" {
			o.found.add(reason, l.name, *at, "%s is a row, and had to be quarantined as %s", describe(r), r.reason)
			return nil
		}
		if different := differences(&r.row, stamp, archived, latency, details, texts); len(different) > 0 {
			o.found.add(altered, l.name, *at, "%s differs in %s", describe(r), strings.Join(different, ", "))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read audit_log: %w", err)
	}
	return nil
}

// fit holds a row against the others of its lane.
func (o *oracle) fit(l *lane, at, id int64) {
	if other, ok := l.rows[at]; ok {
		o.found.add(doubled, l.name, at, "rows %d and %d", other, id)
		return
	}
	l.rows[at] = id
	if state, ok := l.aside[at]; ok {
		if state != "redriven" {
			o.found.add(doubled, l.name, at, "row %d and a quarantined record in state %s", id, state)
		}
		return // a redriven one comes when it comes
	}
	if id <= l.lastID {
		o.found.add(order, l.name, at, "row %d, though offset %d before it is row %d", id, l.lastOffset, l.lastID)
	}
	l.lastID, l.lastOffset = id, at
}

// differences names the columns that aren't as they were sent.
func differences(want *row, stamp time.Time, archived *time.Time, latency *int32, details *string, texts []*string) (columns []string) {
	if !stamp.Equal(want.timestamp) {
		columns = append(columns, "timestamp")
	}
	if (archived == nil) != (want.archived == nil) || archived != nil && !archived.Equal(*want.archived) {
		columns = append(columns, "archived_at")
	}
	if latency == nil || *latency < 0 { // when it is flushed nobody knows
		columns = append(columns, "processing_latency")
	}
	if (details == nil) != (want.details == "") || details != nil && !sameJSON(*details, want.details) {
		columns = append(columns, "details")
	}
	for i, name := range textColumns {
		text, ok := want.texts[name]
		if (texts[i] != nil) != ok || ok && *texts[i] != text {
			columns = append(columns, name)
		}
	}
	return columns
}

// sameJSON compares two JSON texts by what they mean, their numbers to the digit.
func sameJSON(a, b string) bool {
	read := func(text string) (v any, err error) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		err = d.Decode(&v)
		return v, err
	}
	x, errX := read(a)
	y, errY := read(b)
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

// judgeLane holds a lane's position, the end of its log and its offset in Kafka together.
func (o *oracle) judgeLane(l *lane) {
	if l.state == "halted" && !o.allowed.halted {
		o.found.add(halted, l.name, l.next, "the lane stands still")
	}
	if l.log != nil {
		switch {
		case l.next > l.log.end, l.next < l.log.end && !o.allowed.halted:
			o.found.add(position, l.name, l.next, "the position, and the log ends at %d", l.log.end)
		}
		switch at := l.log.committed; {
		case at > l.next:
			o.found.add(offset, l.name, at, "Kafka's committed offset is above the position %d", l.next)
		case at < l.next && l.next > 0 && !o.allowed.halted:
			o.found.add(offset, l.name, at, "Kafka's committed offset has stayed below the position %d", l.next)
		}
	}
}

// judgeMissing looks for what is nowhere.
func (o *oracle) judgeMissing() {
	for p, records := range o.due {
		next := int64(-1)
		var gaps [][2]int64
		for _, l := range o.lanes {
			if l.place == p {
				next, gaps = max(next, l.next), append(gaps, l.gaps...)
			}
		}
		if next < 0 {
			o.found.add(missing, p.String(), -1, "%d records, and audit_lane doesn't know the lane", len(records))
			continue
		}
		for at, r := range records {
			switch {
			case o.times[r] > 0:
			case at >= next && o.allowed.halted: // not due yet
			case slices.ContainsFunc(gaps, func(g [2]int64) bool { return g[0] <= at && at < g[1] }):
			default:
				o.found.add(missing, p.String(), at, "%s was acknowledged, and is nowhere (position %d)", describe(r), next)
			}
		}
	}
}
