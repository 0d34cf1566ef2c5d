// Signs users out by our client.
package main

import (
	"context"

	"example.com/sessions/savings"
	"example.com/sessions/signout"
)

func main() {
	probe.Run(func(address string) func() error {
		client, err := signout.New(address, signout.Config{})
		return func() error {
			if err == nil {
				_, err = client.SignOut(context.Background(), "us-east-1_EXAMPLE01", "ada")
			}
			return err
		}
	})
}
