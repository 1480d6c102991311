package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"auditsink/config"
	"auditsink/internal/postgres"
	"auditsink/sink"
)

func newLanesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lanes",
		Short: "See where the lanes (the partitions of topics) stand, and let halted ones go on",
		RunE:  needsSubcommand,
	}
	asJSON := false
	list := &cobra.Command{
		Use:   "list",
		Short: "List the lanes with position, owner and state",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Postgres)
			if err != nil {
				return err
			}
			pool, err := openDatabase(cmd.Context(), cfg, cfg.PostgresURL)
			if err != nil {
				return err
			}
			defer pool.Close()
			lanes, err := sink.Lanes(cmd.Context(), pool)
			if err != nil {
				return postgres.Explain(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), lanes)
			}
			return printLanes(cmd.OutOrStdout(), lanes)
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(list, newLanesAcceptCommand(), newLanesResetCommand())
	return c
}

func printLanes(out io.Writer, lanes []sink.LaneStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LANE\tTOPIC\tPARTITION\tGROUP\tSTATE\tNEXT OFFSET\tEPOCH\tOWNER\tUPDATED") //nolint:errcheck // Flush tells
	for _, l := range lanes {
		//nolint:errcheck // Flush tells
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%d\t%d\t%s\t%s\n",
			l.LaneID, l.Topic, l.Partition, l.Group, l.State, l.NextOffset, l.Epoch, l.Owner, l.UpdatedAt.UTC().Format(time.RFC3339))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range lanes {
		if l.Reason == "" {
			continue
		}
		if _, err := fmt.Fprintf(out, "lane %d halted: %s\n", l.LaneID, l.Reason); err != nil {
			return err
		}
	}
	return nil
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// needsSubcommand is run for a command that is only a roof over others.
func needsSubcommand(cmd *cobra.Command, _ []string) error {
	if err := cmd.Help(); err != nil {
		return err
	}
	return &usageError{errors.New("which of these?")}
}
