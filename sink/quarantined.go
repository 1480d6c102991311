package sink

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/postgres"
)

// The states of a quarantined record. It leaves [StateNew] once, and stays in its table whatever becomes of it.
const (
	StateNew       = "new"
	StateRedriven  = "redriven"
	StateDiscarded = "discarded"
)

// Filter chooses quarantined records. What is set combines with AND; the zero Filter chooses all.
type Filter struct {
	IDs     []int64
	Reasons []string
	Lanes   []int32
	Topic   string
	// Since and Until bound when a record was quarantined; Until itself is not included.
	Since, Until time.Time
	State        string
}

// conditions are the parts of a WHERE clause and their arguments.
type conditions struct {
	parts []string
	args  []any
}

// add adds a part, in which %d stands for the argument's number.
func (c *conditions) add(part string, arg any) {
	c.args = append(c.args, arg)
	c.parts = append(c.parts, fmt.Sprintf(part, len(c.args)))
}

// where is the clause.
func (c *conditions) where() string { return " WHERE " + strings.Join(c.parts, " AND ") }

// conditions are those on audit_quarantine q.
func (f Filter) conditions() conditions {
	c := conditions{parts: []string{"true"}}
	if len(f.IDs) > 0 {
		c.add("q.id = ANY ($%d)", f.IDs)
	}
	if len(f.Reasons) > 0 {
		c.add("q.reason = ANY ($%d)", f.Reasons)
	}
	if len(f.Lanes) > 0 {
		c.add("q.lane_id = ANY ($%d)", f.Lanes)
	}
	if f.Topic != "" {
		c.add("q.lane_id IN (SELECT lane_id FROM audit_lane WHERE topic = $%d)", f.Topic)
	}
	if !f.Since.IsZero() {
		c.add("q.recorded_at >= $%d", f.Since)
	}
	if !f.Until.IsZero() {
		c.add("q.recorded_at < $%d", f.Until)
	}
	if f.State != "" {
		c.add("q.state = $%d", f.State)
	}
	return c
}

// Quarantined is a quarantined record without its content.
type Quarantined struct {
	ID     int64 `json:"id"`
	LaneID int32 `json:"lane_id"`
	// Topic and Partition are nil where the lane is no longer known.
	Topic     *string `json:"topic"`
	Partition *int32  `json:"partition"`
	Offset    int64   `json:"lane_offset"`
	State     string  `json:"state"`
	Reason    string  `json:"reason"`
	Detail    string  `json:"detail"`
	// RecordTimestamp is nil where the record has none, or one beyond what the column holds.
	RecordTimestamp *time.Time `json:"record_timestamp"`
	RecordedAt      time.Time  `json:"recorded_at"`
	// ValueBytes is the size of the value, nil for a tombstone.
	ValueBytes *int64 `json:"value_bytes"`
}

const (
	quarantinedColumns = `q.id, q.lane_id, l.topic, l.partition, q.lane_offset, q.state, q.reason, coalesce(q.detail, ''), q.record_timestamp, q.recorded_at,
		octet_length(q.value)::bigint`
	quarantinedTables = ` FROM audit_quarantine q LEFT JOIN audit_lane l USING (lane_id)`
)

// columns are where quarantinedColumns are scanned into.
func (q *Quarantined) columns() []any {
	return []any{
		&q.ID, &q.LaneID, &q.Topic, &q.Partition, &q.Offset, &q.State, &q.Reason, &q.Detail, &q.RecordTimestamp, &q.RecordedAt, &q.ValueBytes,
	}
}

// inUTC makes times what they are everywhere else.
func (q *Quarantined) inUTC() {
	q.RecordedAt = q.RecordedAt.UTC()
	if q.RecordTimestamp != nil {
		*q.RecordTimestamp = q.RecordTimestamp.UTC()
	}
}

// pageRows is how many records are read at a time.
const pageRows = 500

// ListQuarantine calls each for the records chosen, the newest first, and at most limit times where that is above 0. An error of each ends it.
func ListQuarantine(ctx context.Context, pool *postgres.Pool, f Filter, limit int, each func(Quarantined) error) error {
	for below, shown := int64(0), 0; limit == 0 || shown < limit; {
		size := pageRows
		if limit > 0 {
			size = min(size, limit-shown)
		}
		page, err := quarantinePage(ctx, pool, f, below, size)
		if err != nil {
			return fmt.Errorf("list the quarantined records: %w", err)
		}
		for _, q := range page {
			if err := each(q); err != nil {
				return err
			}
		}
		if len(page) < size {
			return nil
		}
		shown += size
		below = page[size-1].ID
	}
	return nil
}

// quarantinePage reads the newest records with an ID below the given one, 0 for the very newest.
func quarantinePage(ctx context.Context, pool *postgres.Pool, f Filter, below int64, size int) ([]Quarantined, error) {
	c := f.conditions()
	if below > 0 {
		c.add("q.id < $%d", below)
	}
	c.args = append(c.args, size)
	scan := func(row pgx.CollectableRow) (q Quarantined, err error) {
		err = row.Scan(q.columns()...)
		q.inUTC()
		return q, err
	}
	return collect(ctx, pool, scan, `SELECT `+quarantinedColumns+quarantinedTables+c.where()+fmt.Sprintf(` ORDER BY q.id DESC LIMIT $%d`, len(c.args)), c.args...)
}

// QuarantineCount is how many records there are of a reason and a state.
type QuarantineCount struct {
	Reason, State string
	Records       int64
}

// CountQuarantine counts the records chosen, most first.
func CountQuarantine(ctx context.Context, pool *postgres.Pool, f Filter) ([]QuarantineCount, error) {
	c := f.conditions()
	counts, err := collect(ctx, pool, pgx.RowToStructByPos[QuarantineCount],
		`SELECT q.reason, q.state, count(*) FROM audit_quarantine q`+c.where()+` GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`, c.args...)
	if err != nil {
		return nil, fmt.Errorf("count the quarantined records: %w", err)
	}
	return counts, nil
}

// QuarantinedRecord is all there is about a quarantined record, its content included.
type QuarantinedRecord struct {
	Quarantined
	TopicID *string // nil where the lane is no longer known
	Key     []byte  // nil where the record has none
	Value   []byte  // nil is a tombstone
	Headers []QuarantinedHeader
	Changes []QuarantineChange
}

// QuarantinedHeader is a header as Kafka had it.
type QuarantinedHeader struct {
	Name, Value []byte // Value is nil where it was null
}

// QuarantineChange is what was done to a quarantined record: by whom, as this program and as the database knows them, and why.
type QuarantineChange struct {
	Kind       string    `json:"kind"`
	Reason     string    `json:"reason"`
	Client     string    `json:"client"`
	DoneBy     string    `json:"done_by"`
	RecordedAt time.Time `json:"recorded_at"`
}

// UnknownIDError says that there is no quarantined record of some IDs.
type UnknownIDError struct{ IDs []int64 }

// Error names the IDs.
func (e *UnknownIDError) Error() string {
	return fmt.Sprintf("no quarantined record has the ID %s: `auditsink quarantine list --state all` shows those there are", joinIDs(e.IDs))
}

func joinIDs(ids []int64) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ", "), "[]")
}

// ShowQuarantined reads one record. Errors: [*UnknownIDError], or what the database said.
func ShowQuarantined(ctx context.Context, pool *postgres.Pool, id int64) (*QuarantinedRecord, error) {
	r, err := showQuarantined(ctx, pool, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &UnknownIDError{IDs: []int64{id}}
	}
	if err != nil {
		return nil, fmt.Errorf("read quarantined record %d: %w", id, err)
	}
	return r, nil
}

func showQuarantined(ctx context.Context, pool *postgres.Pool, id int64) (*QuarantinedRecord, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	var r QuarantinedRecord
	var headers []byte
	err = conn.QueryRow(ctx, `SELECT `+quarantinedColumns+`, l.topic_id::text, q.key, q.value, q.headers`+quarantinedTables+` WHERE q.id = $1`, id).
		Scan(append(r.columns(), &r.TopicID, &r.Key, &r.Value, &headers)...)
	if err != nil {
		return nil, err
	}
	r.inUTC()
	if r.Headers, err = decodeHeaders(headers); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT kind, reason, client, done_by, recorded_at FROM audit_lane_event WHERE quarantine_id = $1 ORDER BY id`, id)
	if err != nil {
		return nil, err
	}
	r.Changes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[QuarantineChange])
	for i := range r.Changes {
		r.Changes[i].RecordedAt = r.Changes[i].RecordedAt.UTC()
	}
	return &r, err
}

// NotNewError says that records are no longer new.
type NotNewError struct {
	IDs   []int64
	State string
}

// Error names the records.
func (e *NotNewError) Error() string {
	return fmt.Sprintf("already %s: record %s; nothing was done", e.State, joinIDs(e.IDs))
}

// CheckIDs looks at records that an operator named, before anything is done to them: each must be new, or be in the given state already.
// Those are returned. Errors: [*UnknownIDError], [*NotNewError], or what the database said.
func CheckIDs(ctx context.Context, pool *postgres.Pool, ids []int64, state string) (already []int64, err error) {
	type found struct {
		ID    int64
		State string
	}
	records, err := collect(ctx, pool, pgx.RowToStructByPos[found], `SELECT id, state FROM audit_quarantine WHERE id = ANY ($1) ORDER BY id`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for the quarantined records: %w", err)
	}
	unknown := slices.Compact(slices.Sorted(slices.Values(ids)))
	var other NotNewError
	for _, r := range records {
		unknown = slices.DeleteFunc(unknown, func(id int64) bool { return id == r.ID })
		switch r.State {
		case StateNew:
		case state:
			already = append(already, r.ID)
		default:
			other.IDs, other.State = append(other.IDs, r.ID), r.State
		}
	}
	if len(unknown) > 0 {
		return nil, &UnknownIDError{IDs: unknown}
	}
	if len(other.IDs) > 0 {
		return nil, &other
	}
	return already, nil
}

// decodeHeaders reads what encodeHeaders wrote.
func decodeHeaders(text []byte) ([]QuarantinedHeader, error) {
	if text == nil {
		return nil, nil
	}
	var pairs [][]*string
	if err := json.Unmarshal(text, &pairs); err != nil {
		return nil, fmt.Errorf("read the headers: %w", err)
	}
	headers := make([]QuarantinedHeader, len(pairs))
	for i, pair := range pairs {
		h, err := decodeHeader(pair)
		if err != nil {
			return nil, fmt.Errorf("read header %d: %w", i, err)
		}
		headers[i] = h
	}
	return headers, nil
}

// decodeHeader reads a name, the value in base64 and, where jsonb can't hold the name, that in base64 too.
func decodeHeader(pair []*string) (h QuarantinedHeader, err error) {
	switch {
	case len(pair) == 2 && pair[0] != nil:
		h.Name = []byte(*pair[0])
	case len(pair) == 3 && pair[2] != nil:
		if h.Name, err = base64.StdEncoding.DecodeString(*pair[2]); err != nil {
			return h, err
		}
	default:
		return h, errors.New("it is not as auditsink writes it")
	}
	if pair[1] != nil {
		h.Value, err = base64.StdEncoding.DecodeString(*pair[1])
	}
	return h, err
}

// collect reads all rows of a query.
func collect[T any](ctx context.Context, pool *postgres.Pool, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
