package convert

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// kind is what a column of ours holds, as the SQL type that both sides are compared as.
type kind string

const (
	bigint  kind = "bigint"
	integer kind = "integer"
	boolean kind = "boolean"
	text    kind = "text"
	instant kind = "timestamptz"
	object  kind = "jsonb"
)

// converts lists the types that turn into each kind. A timestamp without a time zone is UTC, as the session is.
var converts = map[kind][]string{
	bigint:  {"smallint", "integer", "bigint"},
	integer: {"smallint", "integer", "bigint"},
	boolean: {"boolean"},
	text:    {"text", "character varying"},
	instant: {"timestamp with time zone", "timestamp without time zone"},
	object:  {"jsonb", "json"},
}

// column is one of ours that the replaced system has too.
type column struct {
	name     string
	kind     kind
	limit    int  // of characters; 0 for none
	required bool // must be there, and not null
	check    string
}

// layout is a table that both systems have.
type layout struct {
	name    string
	columns []column
}

var auditLog = layout{name: "audit_log", columns: []column{
	{name: "id", kind: bigint, required: true},
	{name: "timestamp", kind: instant, required: true},
	{name: "ttl", kind: text, limit: 255},
	{name: "principal_id", kind: text, limit: 255},
	{name: "organization_id", kind: text, limit: 255},
	{name: "action", kind: text, limit: 255, required: true},
	{name: "target_resource_type", kind: text, limit: 255},
	{name: "target_resource_id", kind: text, limit: 255},
	{name: "status", kind: text, limit: 20, required: true, check: `IN ('attempt', 'success', 'failure')`},
	{name: "outcome_description", kind: text},
	{name: "hash", kind: text, limit: 64},
	{name: "hash_algorithm", kind: text, limit: 50},
	{name: "event_version", kind: text, limit: 20},
	{name: "correlation_id", kind: text, limit: 255},
	{name: "data_classification", kind: text, limit: 20},
	{name: "retention_policy", kind: text, limit: 50},
	{name: "processing_latency", kind: integer},
	{name: "archived_at", kind: instant},
	{name: "details", kind: object},
}}

var retentionPolicy = layout{name: "audit_retention_policy", columns: []column{
	{name: "id", kind: integer, required: true},
	{name: "policy_name", kind: text, limit: 255, required: true},
	{name: "retention_days", kind: integer, required: true, check: `> 0`},
	{name: "archive_after_days", kind: integer, check: `> 0`},
	{name: "delete_after_days", kind: integer, check: `> 0`},
	{name: "data_classification", kind: text, limit: 20, required: true},
	{name: "description", kind: text},
	{name: "is_active", kind: boolean, required: true},
	{name: "created_at", kind: instant, required: true},
	{name: "updated_at", kind: instant, required: true},
}}

var integrityLog = layout{name: "audit_integrity_log", columns: []column{
	{name: "id", kind: bigint, required: true},
	{name: "audit_log_id", kind: bigint, required: true},
	{name: "verification_timestamp", kind: instant, required: true},
	{name: "verification_status", kind: text, limit: 20, required: true, check: `IN ('success', 'failure', 'tampered')`},
	{name: "verification_details", kind: object},
	{name: "verified_by", kind: text, limit: 255},
	{name: "hash_verified", kind: text, limit: 64},
	{name: "expected_hash", kind: text, limit: 64},
}}

// held is a column as the replaced table has it.
type held struct {
	column
	typ     string // without a length
	limit   int    // of characters; 0 for none
	notNull bool
}

// table is one of the replaced system's.
type table struct {
	layout
	oid      uint32
	relation string // with its schema, quoted
	columns  []held // those of the layout that it has, in the layout's order
}

// find describes the table of a layout in a schema, nil if it has none, and lists what of its columns stands in the way.
func find(ctx context.Context, conn querier, schema string, l layout) (*table, []string, error) {
	t := &table{layout: l, relation: pgx.Identifier{schema, l.name}.Sanitize()}
	var oid *uint32
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1)::oid`, t.relation).Scan(&oid); err != nil {
		return nil, nil, fmt.Errorf("look for %s: %w", t.relation, err)
	}
	if oid == nil {
		return nil, nil, nil
	}
	t.oid = *oid
	rows, err := conn.Query(ctx, `
		SELECT attname::text, format_type(atttypid, NULL), greatest(atttypmod - 4, 0), attnotnull, attgenerated <> ''
		FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, t.oid)
	if err != nil {
		return nil, nil, fmt.Errorf("read the columns of %s: %w", t.relation, err)
	}
	var faults []string
	there := map[string]held{}
	var h held
	var generated bool
	_, err = pgx.ForEachRow(rows, []any{&h.name, &h.typ, &h.limit, &h.notNull, &generated}, func() error {
		i := slices.IndexFunc(l.columns, func(c column) bool { return c.name == h.name })
		switch {
		case i < 0 || generated:
			faults = append(faults, fmt.Sprintf("%s.%s is a column that auditsink has no place for: drop it, or keep what it holds elsewhere first", t.relation, h.name))
		case !slices.Contains(converts[l.columns[i].kind], h.typ):
			faults = append(faults, fmt.Sprintf("%s.%s has the type %s; what can be converted is %s", t.relation, h.name, h.typ, strings.Join(converts[l.columns[i].kind], ", ")))
		default:
			there[h.name] = held{column: l.columns[i], typ: h.typ, limit: h.limit, notNull: h.notNull}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the columns of %s: %w", t.relation, err)
	}
	for _, c := range l.columns {
		if h, ok := there[c.name]; ok {
			t.columns = append(t.columns, h)
		} else if c.required && !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, t.relation+"."+c.name+" ") }) {
			faults = append(faults, fmt.Sprintf("%s.%s is missing, and every row needs it: add it, with values", t.relation, c.name))
		}
	}
	return t, faults, nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// names are the columns to fill. One that the replaced table doesn't have is filled with null: our default says nothing about its rows.
func (t *table) names() string {
	var all []string
	for _, c := range t.layout.columns {
		all = append(all, quote(c.name))
	}
	return strings.Join(all, ", ")
}

// values are the expressions that fill them. No length is given to a text: a cast would cut it.
func (t *table) values() string {
	var all []string
	for _, c := range t.layout.columns {
		if slices.ContainsFunc(t.columns, func(h held) bool { return h.name == c.name }) {
			all = append(all, quote(c.name)+"::"+string(c.kind))
		} else {
			all = append(all, "NULL")
		}
	}
	return strings.Join(all, ", ")
}

// row is the text that a row is compared by, the same for the replaced table and for ours: all that both have.
func (t *table) row() string {
	var all []string
	for _, c := range t.columns {
		all = append(all, quote(c.name)+"::"+string(c.kind))
	}
	return "ROW(" + strings.Join(all, ", ") + ")::text"
}

// signature tells whether the table is still what it was when the conversion began.
func (t *table) signature() string {
	var all []string
	for _, c := range t.columns {
		all = append(all, fmt.Sprintf("%s %s(%d)", c.name, c.typ, c.limit))
	}
	return fmt.Sprintf("%d: %s", t.oid, strings.Join(all, ", "))
}

// instant casts a parameter to the type of the timestamp column, so that its index serves.
func (t *table) instant(parameter string) string {
	i := slices.IndexFunc(t.columns, func(h held) bool { return h.name == "timestamp" })
	return parameter + "::timestamptz::" + t.columns[i].typ
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}
