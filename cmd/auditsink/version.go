package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"auditsink/migrations"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the binary and of the schema it works with",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "auditsink %s (schema %d, %s, %s/%s)\n",
				version, migrations.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
