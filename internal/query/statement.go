package query

import (
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/hashing"
)

// columns are what an [Event] is made of, in the order of scanEvent.
const columns = `id, timestamp, timestamp_text, ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description, hash, hash_algorithm,
	event_version, correlation_id, data_classification, retention_policy, processing_latency, archived_at, details, recorded_at, lane_id, lane_offset`

// statement is SQL whose every value is a parameter, so that its text may be shown.
type statement struct {
	text  string
	args  []any
	table string // a table partition that it reads, empty where none is known
}

// arg adds a value and returns what stands for it. The type is named since without prepared statements the server would have to guess.
func (s *statement) arg(value any, of string) string {
	s.args = append(s.args, value)
	return fmt.Sprintf("$%d::%s", len(s.args), of)
}

// where is the condition of a question within a window of its range. It begins with the range, by which table partitions are pruned, and the scope.
func (s *statement) where(q question, w window) string {
	and := append(s.inside(w), s.within(q.scope, q.filter.identifies())...)
	for _, t := range q.filter.texts() {
		if *t.value != "" {
			and = append(and, t.column+" = "+s.arg(*t.value, "text"))
		}
	}
	if !q.filter.ArchivedFrom.IsZero() {
		and = append(and, "archived_at >= "+s.arg(q.filter.ArchivedFrom, "timestamptz"))
	}
	if !q.filter.ArchivedTo.IsZero() {
		and = append(and, "archived_at < "+s.arg(q.filter.ArchivedTo, "timestamptz"))
	}
	return strings.Join(and, " AND ")
}

// inside is the condition of a window.
func (s *statement) inside(w window) []string {
	s.table = w.partition.table
	return []string{"timestamp >= " + s.arg(w.from, "timestamptz"), "timestamp < " + s.arg(w.to, "timestamptz")}
}

// within is the condition of a scope; there is none on everything. Where the filter identifies a few events, no index on the organization is to be taken for it: a planner that knows nothing of
// how a BRIN of bloom filters leads to them would read all of the scope's instead.
func (s *statement) within(scope Scope, identified bool) []string {
	if scope.all {
		return nil
	}
	condition := "organization_id = ANY (" + s.arg(scope.organizations, "text[]") + ")"
	if identified {
		condition = "(" + condition + ") IS TRUE"
	}
	return []string{condition}
}

// pageStatement asks for the events of a window by key, at most so many, after a position where there is one, from which on the window is.
func pageStatement(q question, w window, after *position, limit int) statement {
	var s statement
	beyond, direction := "<", "DESC"
	if q.filter.Ascending {
		beyond, direction = ">", "ASC"
	}
	where := s.where(q, w)
	if after != nil {
		where += fmt.Sprintf(" AND (timestamp, id) %s (%s, %s)", beyond, s.arg(time.UnixMicro(after.at), "timestamptz"), s.arg(after.id, "bigint"))
	}
	s.text = fmt.Sprintf("SELECT %s FROM audit_log WHERE %s ORDER BY timestamp %s, id %[3]s LIMIT %s", columns, where, direction, s.arg(int64(limit), "bigint"))
	return s
}

// countStatement counts the events of a window, up to most.
func countStatement(q question, w window, most int64) statement {
	var s statement
	where := s.where(q, w)
	s.text = fmt.Sprintf("SELECT count(*) FROM (SELECT FROM audit_log WHERE %s LIMIT %s) chosen", where, s.arg(most, "bigint"))
	return s
}

// heldStatement counts all events of a window, up to most.
func heldStatement(w window, most int64) statement {
	var s statement
	where := strings.Join(s.inside(w), " AND ")
	s.text = fmt.Sprintf("SELECT count(*) FROM (SELECT FROM audit_log WHERE %s LIMIT %s) held", where, s.arg(most, "bigint"))
	return s
}

// eventStatement asks for one event within a window.
func eventStatement(scope Scope, id int64, w window) statement {
	var s statement
	and := append(append(s.inside(w), "id = "+s.arg(id, "bigint")), s.within(scope, true)...)
	s.text = fmt.Sprintf("SELECT %s FROM audit_log WHERE %s ORDER BY timestamp DESC LIMIT 1", columns, strings.Join(and, " AND "))
	return s
}

// scanEvent reads a row of [columns].
func scanEvent(rows pgx.Rows) (Event, position, error) {
	var e Event
	var at time.Time
	var received *string
	err := rows.Scan(&e.ID, &at, &received, &e.TTL, &e.PrincipalID, &e.OrganizationID, &e.Action, &e.TargetResourceType, &e.TargetResourceID, &e.Status, &e.OutcomeDescription,
		&e.Hash, &e.HashAlgorithm, &e.EventVersion, &e.CorrelationID, &e.DataClassification, &e.RetentionPolicy, &e.ProcessingLatency, &e.ArchivedAt, &e.Details, &e.RecordedAt,
		&e.LaneID, &e.LaneOffset)
	if err != nil {
		return e, position{}, err
	}
	if received != nil {
		e.Timestamp = *received
	} else {
		e.Timestamp = string(hashing.AppendTimestamp(nil, at.UnixMicro()))
	}
	e.RecordedAt = e.RecordedAt.UTC()
	if e.ArchivedAt != nil {
		*e.ArchivedAt = e.ArchivedAt.UTC()
	}
	return e, position{at.UnixMicro(), e.ID}, nil
}
