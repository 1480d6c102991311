package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// future is how far after now a timestamp may lie, as for the events of a worker. Earlier than epoch none may.
const (
	future = "48 hours"
	epoch  = "1970-01-01 00:00:00+00"
)

// Plan is what a conversion would do.
type Plan struct {
	Nothing bool   `json:"nothing_to_convert"`
	Stage   string `json:"stage,omitempty"` // how far an earlier run has come
	Rows    int64  `json:"rows"`
	// SetAside are those of them whose timestamps no partition is made for.
	SetAside int64     `json:"set_aside"`
	Months   int       `json:"months"`
	First    time.Time `json:"first,omitzero"` // month that has rows
	Last     time.Time `json:"last,omitzero"`
	// Bytes are those of the old table with its indexes. About as many are needed beside it until it is dropped.
	Bytes int64 `json:"bytes"`
	// Notes are things that are not carried over and that nothing depends on.
	Notes []string `json:"notes,omitempty"`
}

// Check finds out what a conversion would do, and fails with a [*Refusal] where something is in the way. It changes nothing.
func Check(ctx context.Context, o Options) (Plan, error) {
	c, err := begin(ctx, o)
	if err != nil {
		return Plan{}, err
	}
	defer c.close(ctx)
	if c.ours {
		return Plan{Nothing: true}, nil
	}
	c.setAside = c.setAside || o.SetAside
	plan, err := c.preflight(ctx)
	plan.Stage = c.stage
	return plan, err
}

// preflight looks for all that is in the way before anything is changed.
func (c *conversion) preflight(ctx context.Context) (Plan, error) {
	c.Report(Progress{Stage: "looking at the table"})
	reasons, err := c.inTheWay(ctx)
	if err != nil {
		return Plan{}, err
	}
	if len(c.faults) > 0 { // then its values can't be asked for
		return Plan{}, &Refusal{reasons}
	}
	plan, err := c.values(ctx)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		reasons = append(reasons, refusal.Reasons...)
	case err != nil:
		return Plan{}, err
	}
	if len(reasons) > 0 {
		return plan, &Refusal{reasons}
	}
	return plan, c.measure(ctx, &plan)
}

// inTheWay lists what is, but for the values. It may come at any time until the swap.
func (c *conversion) inTheWay(ctx context.Context) ([]string, error) {
	reasons := slices.Clone(c.faults)
	for _, look := range []func(context.Context) ([]string, error){c.shape, c.dependents, c.rights, c.taken} {
		found, err := look(ctx)
		if err != nil {
			return nil, err
		}
		reasons = append(reasons, found...)
	}
	return reasons, nil
}

func (c *conversion) tables() []*table {
	return slices.DeleteFunc([]*table{c.log, c.policies, c.integrity}, func(t *table) bool { return t == nil })
}

func (c *conversion) oids() []uint32 {
	var all []uint32
	for _, t := range c.tables() {
		all = append(all, t.oid)
	}
	return all
}

// list asks for texts.
func (c *conversion) list(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := c.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// shape is what the table itself must be like.
func (c *conversion) shape(ctx context.Context) ([]string, error) {
	found, err := c.list(ctx, `
		SELECT format('%s is no ordinary table', oid::regclass) FROM pg_class WHERE oid = ANY($1) AND relkind <> 'r'
		UNION ALL SELECT format('%s has row security, which would be lost: switch it off (ALTER TABLE … DISABLE ROW LEVEL SECURITY), and set it up again afterwards', oid::regclass)
		FROM pg_class WHERE oid = ANY($1) AND relrowsecurity
		UNION ALL SELECT format('%s inherits from, or is a partition of, %s: end that (ALTER TABLE … NO INHERIT, DETACH PARTITION)', inhrelid::regclass, inhparent::regclass)
		FROM pg_inherits WHERE inhrelid = ANY($1)
		UNION ALL SELECT format('%s has no primary key or unique index on id alone, by which changes are followed: make one', t) FROM unnest($1::oid[]) t
		WHERE EXISTS (SELECT FROM pg_class WHERE oid = t AND relkind = 'r') AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = t AND a.attnum = i.indkey[0]
		    WHERE i.indrelid = t AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = 'id' AND a.attnotnull)
		UNION ALL SELECT format('%s has no index that begins with timestamp, by which months are read: make one (CREATE INDEX CONCURRENTLY audit_log_timestamp_idx ON %1$s (timestamp))', $2::oid::regclass)
		WHERE EXISTS (SELECT FROM pg_class WHERE oid = $2 AND relkind = 'r') AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = $2 AND a.attnum = i.indkey[0]
		    JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am am ON am.oid = x.relam
		    WHERE i.indrelid = $2 AND i.indisvalid AND i.indpred IS NULL AND a.attname = 'timestamp' AND am.amname = 'btree')`, c.oids(), c.log.oid)
	if err != nil {
		return nil, fmt.Errorf("look at the shape of the tables: %w", err)
	}
	return found, nil
}

// dependents are things that point to the old tables and would go on pointing there, or would be lost. What is between the old tables goes with them.
func (c *conversion) dependents(ctx context.Context) ([]string, error) {
	found, err := c.list(ctx, `
		SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) || ' depends on ' || CASE d.refclassid WHEN 'pg_class'::regclass THEN d.refobjid::regclass::text ELSE d.refobjid::regtype::text END || ': ' ||
		       CASE d.classid WHEN 'pg_rewrite'::regclass THEN 'drop it, and create it again on the new table'
		                      WHEN 'pg_trigger'::regclass THEN 'drop it; a trigger of the new table has to be made for the partitioned one'
		                      WHEN 'pg_constraint'::regclass THEN 'drop the foreign key; auditsink has none, so that partitions can go'
		                      WHEN 'pg_publication_rel'::regclass THEN 'take the table out of the publication, and put the new one in afterwards'
		                      ELSE 'drop it, or make it independent of the table' END
		FROM pg_depend d
		LEFT JOIN pg_class r ON d.classid = 'pg_class'::regclass AND r.oid = d.objid
		LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
		LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
		LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
		WHERE (d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1)
		       OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (SELECT reltype FROM pg_class WHERE oid = ANY($1)))
		  AND d.deptype <> 'i'
		  AND d.classid NOT IN ('pg_statistic_ext'::regclass, 'pg_type'::regclass)
		  AND NOT coalesce(r.relkind IN ('i', 't') OR r.relkind = 'S' AND d.deptype = 'a', false)
		  AND NOT coalesce(k.contype <> 'f' AND k.conrelid = ANY($1) OR k.contype = 'f' AND k.conrelid = ANY($1) AND k.confrelid = ANY($1), false)
		  AND NOT coalesce(f.adrelid = ANY($1), false)
		  AND NOT coalesce(g.tgisinternal OR g.tgname LIKE 'auditsink\_convert\_%', false)
		UNION ALL SELECT format('subscription %s writes to %s, and would pass over the new table: end it (DROP SUBSCRIPTION), or take the table out of it',
		    (SELECT quote_ident(subname) FROM pg_subscription WHERE oid = s.srsubid), s.srrelid::regclass)
		FROM pg_subscription_rel s WHERE s.srrelid = ANY($1)
		ORDER BY 1`, c.oids())
	if err != nil {
		return nil, fmt.Errorf("look for what depends on the tables: %w", err)
	}
	return found, nil
}

// functions are the names of ours that the replaced system may have too, for as long as ours aren't made.
var functions = []string{"create_audit_log_partition", "create_audit_log_partitions", "drop_old_audit_partitions", "get_audit_partition_stats", "audit_log_partition_bounds"}

// rights that are missing.
func (c *conversion) rights(ctx context.Context) ([]string, error) {
	found, err := c.list(ctx, `
		SELECT format('%s belongs to %s, and only the owner, a member of that role or a superuser can convert it', oid::regclass, relowner::regrole) FROM pg_class
		WHERE oid = ANY($1) AND NOT pg_has_role(relowner, 'USAGE')
		UNION ALL SELECT format('role %I may not create schemas in this database: GRANT CREATE ON DATABASE %I', current_user, current_database())
		WHERE NOT has_database_privilege(current_database(), 'CREATE')
		UNION ALL SELECT format('role %I may not create tables in schema %I: GRANT CREATE ON SCHEMA', current_user, $2::text) WHERE NOT has_schema_privilege($2::text, 'CREATE')
		UNION ALL SELECT format('function %s belongs to %s, and only its owner can move it out of the way of ours: ALTER ROUTINE … OWNER TO %I, or drop it', p.oid::regprocedure, p.proowner::regrole, current_user)
		FROM pg_proc p WHERE p.pronamespace = quote_ident($2::text)::regnamespace AND NOT pg_has_role(p.proowner, 'USAGE') AND (p.proname = ANY($3)
		    OR EXISTS (SELECT FROM pg_proc wanted WHERE wanted.pronamespace = to_regnamespace('audit_convert') AND wanted.proname = p.proname))`,
		c.oids(), c.schema, functions)
	if err != nil {
		return nil, fmt.Errorf("look at our rights: %w", err)
	}
	return found, nil
}

// taken are names that the swap needs. What is of the replaced tables moves away with them; functions of the same names do too.
func (c *conversion) taken(ctx context.Context) ([]string, error) {
	found, err := c.list(ctx, `
		SELECT format('there is a relation %s, whose name is wanted: rename it or move it away', c.oid::regclass) FROM pg_class c
		WHERE c.relnamespace = $2::text::regnamespace AND c.oid <> ALL($1)
		  AND (c.relname ~ '^audit_(log_[0-9]{4}_[0-9]{2}|log_set_aside|lane|lane_event|quarantine|gap|leader|partition_event|legal_hold|schema_version|retention_policy|integrity_log)$'
		       OR c.relname ~ '^audit_(log|retention_policy|integrity_log)_id_seq$'
		       OR EXISTS (SELECT FROM pg_class wanted WHERE wanted.relname = c.relname AND wanted.relnamespace = to_regnamespace('audit_convert')))
		  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = c.oid AND i.indrelid = ANY($1))
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1) AND d.deptype IN ('a', 'i'))
		UNION ALL SELECT 'there is a schema audit_replaced, where the replaced table would go: drop it (--drop-replaced, if an earlier conversion left it) or rename it'
		WHERE to_regnamespace('audit_replaced') IS NOT NULL`, c.oids(), quote(c.schema))
	if err != nil {
		return nil, fmt.Errorf("look for names that are taken: %w", err)
	}
	return found, nil
}

// fault is a way in which a value doesn't fit.
type fault struct {
	what, where string
	aside       bool // such a row can be set aside
}

func (c *conversion) outside() string {
	return fmt.Sprintf(`("timestamp"::timestamptz < '%s' OR "timestamp"::timestamptz >= now() + interval '%s')`, epoch, future)
}

func (c *conversion) faultsOf(t *table) []fault {
	var all []fault
	for _, h := range t.columns {
		name := quote(h.name)
		if h.required && !h.notNull {
			all = append(all, fault{what: h.name + " is null", where: name + " IS NULL"})
		}
		if h.column.limit > 0 && (h.limit == 0 || h.limit > h.column.limit) {
			all = append(all, fault{what: fmt.Sprintf("%s is longer than %d characters", h.name, h.column.limit), where: fmt.Sprintf("char_length(%s) > %d", name, h.column.limit)})
		}
		if h.check != "" {
			all = append(all, fault{what: fmt.Sprintf("%s is not %s", h.name, h.check), where: fmt.Sprintf("NOT (%s %s)", name, h.check)})
		}
		if h.kind == integer && h.typ == "bigint" {
			all = append(all, fault{what: h.name + " is beyond a 4-byte integer", where: name + " NOT BETWEEN -2147483648 AND 2147483647"})
		}
		if h.kind == object && h.typ == "json" {
			all = append(all, fault{what: h.name + " can't be jsonb (as with \\u0000, or a key twice)", where: "NOT pg_temp.convertible(" + name + "::text)"})
		}
		if t == c.log && h.name == "timestamp" {
			all = append(all, fault{what: "timestamp is before 1970 or more than 48 hours ahead, and no partition is made for such a one (--set-aside moves these rows to audit_log_set_aside)", where: c.outside(), aside: true})
		}
	}
	return all
}

// convertible tells whether a json value is a jsonb one too: not with \u0000, for one. Nor where an object has a key twice, of which jsonb keeps the last: evidence would be
// lost, and the comparison, which is of jsonb, wouldn't notice.
const convertible = `CREATE OR REPLACE FUNCTION pg_temp.convertible(value text) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM value::jsonb;
		RETURN NOT EXISTS (
			WITH RECURSIVE part AS (
				SELECT value::json AS v
				UNION ALL SELECT inner_part.v FROM part, LATERAL (
					SELECT e.value FROM json_each(CASE json_typeof(part.v) WHEN 'object' THEN part.v ELSE '{}' END) e
					UNION ALL SELECT e.value FROM json_array_elements(CASE json_typeof(part.v) WHEN 'array' THEN part.v ELSE '[]' END) e) AS inner_part (v))
			SELECT FROM part WHERE json_typeof(v) = 'object' AND (SELECT count(*) > count(DISTINCT key) FROM json_object_keys(v) AS key));
	EXCEPTION WHEN data_exception OR program_limit_exceeded THEN RETURN false; END $$`

// values reads all rows once, and refuses those that don't fit, with counts and some ids.
func (c *conversion) values(ctx context.Context) (plan Plan, err error) {
	var reasons []string
	for _, t := range c.tables() {
		if slices.ContainsFunc(t.columns, func(h held) bool { return h.typ == "json" }) { // else it isn't needed, nor the right to make it
			if _, err := c.conn.Exec(ctx, convertible); err != nil {
				return plan, fmt.Errorf("look at the values of %s: %w", t.relation, err)
			}
		}
		faults := c.faultsOf(t)
		counts := make([]int64, len(faults)+1)
		columns, into := []string{"count(*)"}, []any{&counts[0]}
		for i, f := range faults {
			columns, into = append(columns, "count(*) FILTER (WHERE "+f.where+")"), append(into, &counts[i+1])
		}
		if err := c.conn.QueryRow(ctx, "SELECT "+strings.Join(columns, ", ")+" FROM "+t.relation).Scan(into...); err != nil {
			return plan, fmt.Errorf("look at the values of %s: %w", t.relation, err)
		}
		if t == c.log {
			plan.Rows = counts[0]
		}
		for i, f := range faults {
			n := counts[i+1]
			if f.aside {
				plan.SetAside = n
			}
			if n == 0 || f.aside && c.setAside {
				continue
			}
			ids, err := c.list(ctx, "SELECT id::text FROM "+t.relation+" WHERE "+f.where+" ORDER BY id LIMIT 5")
			if err != nil {
				return plan, fmt.Errorf("name rows of %s: %w", t.relation, err)
			}
			reasons = append(reasons, fmt.Sprintf("%d rows of %s don't fit: %s; ids %s", n, t.relation, f.what, strings.Join(ids, ", ")))
		}
	}
	if len(reasons) > 0 {
		return plan, &Refusal{reasons}
	}
	return plan, nil
}

// measure says how large all is.
func (c *conversion) measure(ctx context.Context, plan *Plan) error {
	var first, last *time.Time
	err := c.conn.QueryRow(ctx, fmt.Sprintf(`
		SELECT count(DISTINCT date_trunc('month', "timestamp"::timestamptz)), date_trunc('month', min("timestamp"::timestamptz)), date_trunc('month', max("timestamp"::timestamptz)), pg_total_relation_size($1::oid)
		FROM %s WHERE NOT %s`, c.log.relation, c.outside()), c.log.oid).Scan(&plan.Months, &first, &last, &plan.Bytes)
	if err != nil {
		return fmt.Errorf("measure %s: %w", c.log.relation, err)
	}
	if first != nil {
		plan.First, plan.Last = first.UTC(), last.UTC()
	}
	plan.Notes, err = c.list(ctx, `
		SELECT format('index %s is not carried over: %s', indexrelid::regclass, pg_get_indexdef(indexrelid)) FROM pg_index JOIN pg_class x ON x.oid = indexrelid
		WHERE indrelid = $1 AND NOT indisprimary AND x.relname !~ '^audit_log_(timestamp|principal_id|organization_id|action|status|hash|target_resource_type|target_resource_id|correlation_id|data_classification|retention_policy|archived_at|timestamp_status|principal_action|classification_retention|resource_type_id)_idx$'
		UNION ALL
		SELECT format('publication %I has all tables, or all of the schema: its subscribers will be sent the new partitions, and need tables of these names (or publish_via_partition_root) and a REFRESH', pubname)
		FROM pg_publication p WHERE puballtables OR EXISTS (SELECT FROM pg_publication_namespace n JOIN pg_class t ON t.relnamespace = n.pnnspid WHERE n.pnpubid = p.oid AND t.oid = $1)
		ORDER BY 1`, c.log.oid)
	if err != nil {
		return fmt.Errorf("list what is not carried over of %s: %w", c.log.relation, err)
	}
	return nil
}
