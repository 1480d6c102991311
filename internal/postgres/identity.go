package postgres

import (
	"context"
	"fmt"
)

// Identity names the database and the schema in which our tables are, unlike any other's, for what lies outside of the database and belongs to it alone: keys in a
// Redis that others use too. It stays what it is over restarts, failovers, renames and poolers, and has digits, dots and one letter only.
//
// It is made of the server's system identifier, or where that may not be read (pg_control_system, which PUBLIC may by default) the moment of our first migration, and of
// the OIDs of database and schema. A physical copy that was promoted has the identity of its original: it needs a Redis of its own.
func (p *Pool) Identity(ctx context.Context) (string, error) {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	var database, schema uint32
	permitted := false
	// Where audit_leader is and not current_schema(), which for another user of the same tables may be another.
	err = conn.QueryRow(ctx, `
		SELECT d.oid, c.relnamespace, has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
		FROM pg_database d, pg_class c WHERE d.datname = current_database() AND c.oid = 'audit_leader'::regclass`).Scan(&database, &schema, &permitted)
	if err != nil {
		return "", fmt.Errorf("read the identity of the database: %w", err)
	}
	origin := `SELECT 's' || system_identifier FROM pg_control_system()`
	if !permitted {
		origin = `SELECT 'm' || (extract(epoch FROM min(tstamp)) * 1000000)::bigint FROM audit_schema_version`
	}
	server := ""
	if err := conn.QueryRow(ctx, origin).Scan(&server); err != nil {
		return "", fmt.Errorf("read the identity of the database: %w", err)
	}
	return fmt.Sprintf("%s.%d.%d", server, database, schema), nil
}
